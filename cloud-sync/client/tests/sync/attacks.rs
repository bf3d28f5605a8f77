//! The attacks of the TUF specification (section 1.5.2), as a gateway meets them: it follows a control plane that somebody else has taken over, who
//! has its on-line key and all that was ever uploaded. Each is refused and told for a reason of its own, and neither what is trusted, on disk as
//! in memory, nor what runs is another than before. Of endless data and slow retrieval `blobs` and `session` have tests.

use std::collections::BTreeMap;
use std::fs;

use sync_protocol::capability::Capabilities;
use sync_protocol::deployment::Target;
use sync_protocol::name::{ArtifactName, GatewayName};
use sync_protocol::{
    Artifact, Blob, Deployment, Desired, DesiredAnswer, Digest, Envelope, Kind, Release, Role, RoleKeys, Root,
    SecretKey,
};

use crate::server::{Fleet, NOW_MS};
use crate::site::{Site, eventually};

/// What the gateway runs; the lowest that it may go back to is 3.
const RUNS: u64 = 5;
/// How far the control plane's word has been counted.
const SEQUENCE: u64 = 7;

fn release(name: &str, version: u64) -> Release {
    let code = format!("{name} {version}").into_bytes();
    Release {
        kind: Kind::Function,
        name: ArtifactName::parse(name).unwrap(),
        version: format!("{version}.0.0").parse().unwrap(),
        blob: Blob { digest: Digest::of(&code), bytes: code.len() as u64 },
        capabilities: Capabilities(vec!["mqtt:publish:results/#".parse().unwrap()]),
        models: Vec::new(),
        minimum: None,
        native: Vec::new(),
        published_ms: NOW_MS,
    }
}

/// Function `oven` of version `number`, as everybody signs it unless `change` says otherwise.
struct Draft<'a> {
    fleet: &'a Fleet,
    sequence: u64,
    release: Envelope,
    deployment: Deployment,
    operator: &'a SecretKey,
}

impl<'a> Draft<'a> {
    fn new(fleet: &'a Fleet, sequence: u64, number: u64) -> Self {
        Self::of(fleet, sequence, number, &release("oven", number), &fleet.publisher)
    }

    fn of(fleet: &'a Fleet, sequence: u64, number: u64, release: &Release, publisher: &SecretKey) -> Self {
        let envelope = Envelope::sign(release, &[publisher]).unwrap();
        let artifact = Artifact {
            kind: release.kind,
            name: release.name.clone(),
            version: release.version.clone(),
            release: envelope.digest().unwrap(),
            capabilities: Capabilities::default(),
            settings: BTreeMap::new(),
        };
        let deployment = Deployment { floor: 3, artifacts: vec![artifact], ..fleet.deployment(number) };
        Self { fleet, sequence, release: envelope, deployment, operator: &fleet.operator }
    }

    fn but(mut self, change: impl FnOnce(&mut Deployment)) -> Self {
        change(&mut self.deployment);
        self
    }

    fn answer(&self) -> DesiredAnswer {
        self.answer_that(|_| ())
    }

    /// With a word that the stolen key signs.
    fn answer_that(&self, change: impl FnOnce(&mut Desired)) -> DesiredAnswer {
        let deployment = Envelope::sign(&self.deployment, &[self.operator]).unwrap();
        let mut word = self.fleet.word(self.sequence, &deployment);
        change(&mut word);
        let desired = Some(Envelope::sign(&word, &[&self.fleet.online]).unwrap());
        DesiredAnswer {
            desired,
            deployment: Some(deployment),
            releases: vec![self.release.clone()],
            ..Default::default()
        }
    }
}

/// Each attack, and the reason for which it is refused.
fn attacks(fleet: &Fleet) -> Vec<(&'static str, DesiredAnswer, &'static str)> {
    let stranger = SecretKey::generate().unwrap();
    let next = || Draft::new(fleet, SEQUENCE + 1, 6);
    let other = Draft::new(fleet, SEQUENCE + 1, 9).answer();
    let root = |version, by: &SecretKey| {
        let root = Root { version, ..fleet.roots[0].unverified().unwrap() };
        Envelope::sign(&root, &[by]).unwrap()
    };
    let forged_word =
        Envelope::sign(&fleet.word(SEQUENCE + 1, next().answer().deployment.as_ref().unwrap()), &[&stranger]);
    vec![
        (
            "arbitrary installation, of a deployment",
            Draft { operator: &stranger, ..next() }.answer(),
            "the deployment is signed by 0 of the keys",
        ),
        (
            "arbitrary installation, by the stolen on-line key",
            Draft { operator: &fleet.online, ..next().but(|deployment| deployment.comment = "mine".to_owned()) }
                .answer(),
            "the deployment is signed by 0 of the keys",
        ),
        (
            "arbitrary installation, of a release",
            Draft::of(fleet, SEQUENCE + 1, 6, &release("oven", 6), &fleet.operator).answer(),
            "the release of function/oven 6.0.0 is signed by 0 of the keys",
        ),
        (
            "arbitrary installation, without the on-line key",
            DesiredAnswer { desired: forged_word.ok(), ..next().answer() },
            "the desired document is signed by 0 of the keys",
        ),
        ("rollback", Draft::new(fleet, SEQUENCE - 1, 6).answer(), "desired document 6 is older than 7"),
        (
            "resurrection",
            Draft::new(fleet, SEQUENCE + 1, 2).but(|deployment| deployment.floor = 1).answer(),
            "is superseded for good",
        ),
        (
            "indefinite freeze, of the word",
            next().answer_that(|word| word.expires_ms = NOW_MS),
            "the desired document expired on",
        ),
        (
            "indefinite freeze, of the deployment",
            next().but(|deployment| deployment.expires_ms = NOW_MS).answer(),
            "deployment 6 of gateway/press-hall-3 expired on",
        ),
        (
            "endless data",
            next().but(|deployment| deployment.comment = "x".repeat(1 << 20)).answer(),
            "bytes, more than the 1048576 that are allowed",
        ),
        (
            "extraneous dependencies",
            DesiredAnswer { releases: [next().answer().releases, other.releases.clone()].concat(), ..next().answer() },
            "nothing that was signed names it",
        ),
        (
            "mix and match, of word and deployment",
            DesiredAnswer { desired: next().answer().desired, ..other.clone() },
            "which the desired document names",
        ),
        (
            "mix and match, of deployment and release",
            DesiredAnswer { releases: other.releases, ..next().answer() },
            "the release of function/oven 6.0.0 is missing",
        ),
        (
            "wrong software",
            next().but(|deployment| deployment.artifacts[0].name = ArtifactName::parse("lamp").unwrap()).answer(),
            "the release that it names is function/oven 6.0.0",
        ),
        (
            "what was signed for another gateway",
            next()
                .but(|deployment| deployment.target = Target::Gateway(GatewayName::parse("press-9").unwrap()))
                .answer(),
            "is for gateway/press-9, which gateway `press-hall-3` is not",
        ),
        (
            "what was said to another gateway",
            next().answer_that(|word| word.gateway = GatewayName::parse("press-9").unwrap()),
            "the desired document is for gateway `press-9`",
        ),
        (
            "more rights",
            next()
                .but(|deployment| deployment.artifacts[0].capabilities.0.push("mqtt:publish:#".parse().unwrap()))
                .answer(),
            "is granted `mqtt:publish:#`, which its publisher does not allow",
        ),
        (
            "one number, two contents",
            Draft::new(fleet, SEQUENCE + 1, RUNS).but(|deployment| deployment.comment = "other".to_owned()).answer(),
            "deployment 5 of gateway/press-hall-3 was sha256:",
        ),
        (
            "a root of somebody else",
            DesiredAnswer { roots: vec![root(2, &stranger)], ..next().answer() },
            "root 2 is signed by 0 of the keys",
        ),
        (
            "a root left out",
            DesiredAnswer { roots: vec![root(3, &fleet.root)], ..next().answer() },
            "root 3 does not follow root 1",
        ),
    ]
}

#[tokio::test]
async fn each_attack_is_refused_for_its_own_reason_and_changes_nothing() {
    let site = Site::new().await;
    let fleet = &site.server.fleet;
    let running = site.follow();
    site.server.wants(Draft::new(fleet, SEQUENCE, RUNS).answer());
    running.deployed(RUNS).await;
    let file = site.state.path().join("trust/trust.json");
    let trusted = fs::read(&file).unwrap();

    let refused = || site.server.book().reports.last().map_or(String::new(), |report| report.refused.clone());
    for (attack, answer, why) in attacks(fleet) {
        let reports = site.server.book().reports.len();
        site.server.wants(answer);
        eventually(&format!("{attack}: {why}"), || {
            site.server.book().reports.len() > reports && refused().contains(why)
        })
        .await;
        assert_eq!(fs::read(&file).unwrap(), trusted, "{attack}");
        assert_eq!((running.cloud.trust().root_version(), running.cloud.trust().desired_sequence()), (1, SEQUENCE));
        running.deployed(RUNS).await;
        // The gateway is not in their hands: what holds is taken again, and the next attack is told anew.
        site.server.wants(Draft::new(fleet, SEQUENCE, RUNS).answer());
        eventually(&format!("it is over: {attack}"), || refused().is_empty()).await;
    }
    site.server.wants(Draft::new(fleet, SEQUENCE + 1, 6).answer());
    running.deployed(6).await;
    running.stop().await;
}

/// Key compromise, and fast-forward: the thief has counted as high as there are numbers, until the next root takes the key away.
#[tokio::test]
async fn a_stolen_online_key_is_taken_away_by_the_next_root() {
    const LAST: u64 = (1 << 53) - 1;
    let site = Site::new().await;
    let fleet = &site.server.fleet;
    let running = site.follow();
    site.server.wants(Draft::new(fleet, LAST, RUNS).answer());
    running.deployed(RUNS).await;
    site.server.wants(Draft::new(fleet, SEQUENCE, 6).answer());
    eventually("locked", || running.cloud.refused().borrow().contains("desired document 7 is older than")).await;

    let online = SecretKey::generate().unwrap();
    let mut root = Root { version: 2, ..fleet.roots[0].unverified().unwrap() };
    root.roles.insert(Role::Online, RoleKeys::new([online.public()], 1));
    let next = Draft::new(fleet, SEQUENCE, 6);
    let word = fleet.word(SEQUENCE, next.answer().deployment.as_ref().unwrap());
    let mended = DesiredAnswer {
        roots: vec![Envelope::sign(&root, &[&fleet.root]).unwrap()],
        desired: Envelope::sign(&word, &[&online]).ok(),
        ..next.answer()
    };
    site.server.wants(mended);
    running.deployed(6).await;
    site.server.wants(Draft::new(fleet, LAST, RUNS).answer());
    eventually("it signs nothing", || running.cloud.refused().borrow().contains("the desired document is signed by 0"))
        .await;
    running.deployed(6).await;
    running.stop().await;
}
