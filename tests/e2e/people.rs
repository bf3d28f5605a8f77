//! What people do with a control plane by the command line, as they type it, and what it says.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use control_plane::audit::Entry;
use control_plane::clock::Clock;
use control_plane::store::sqlite::SqliteStore;
use control_plane::store::{AliasRow, Deployments as _, Page, Registry as _};
use sqlx::{Connection as _, SqliteConnection};
use sync_protocol::name::AliasName;
use sync_protocol::{Deployment, Envelope, Release, Root, SecretKey};

use crate::fleet::Reader;

/// A control plane that serves, and the one person who has all keys so far.
pub(crate) struct Team {
    pub(crate) reader: Reader,
    port: u16,
}

impl Team {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let port = e2e::free_port()?;
        let mut team = Self { reader: Reader::new(port, e2e::free_port()?)?, port };
        team.says("tidegate cloud init --url https://localhost:8443 --configure", "made a control plane").await?;
        team.serve().await?;
        team.says("tidegate keygen --send", "the control plane has root 1, sha256:").await?;
        Ok(team)
    }

    /// Starts the control plane.
    pub(crate) async fn serve(&mut self) -> anyhow::Result<()> {
        self.reader.start(&format!("tidegate cloud run --listen 127.0.0.1:{}", self.port), "cloud.log")?;
        self.reader.until("the control plane", "tidegate fleet", |_| true).await
    }

    /// Runs a line, which must succeed and say this.
    pub(crate) async fn says(&self, line: &str, wanted: &str) -> anyhow::Result<String> {
        self.ends(line, 0, wanted).await
    }

    /// Runs a line, which must end with `status` and say this.
    pub(crate) async fn ends(&self, line: &str, status: i32, wanted: &str) -> anyhow::Result<String> {
        let (ended, said) = self.reader.run(line).await?;
        let logs = || self.reader.logs();
        ensure!(ended == status, "`{line}` ended with {ended}, not {status}:\n{said}\n{}", logs());
        ensure!(said.contains(wanted), "`{line}` should say `{wanted}`:\n{said}\n{}", logs());
        Ok(said)
    }

    /// Publishes one of the models as a version of `motion`, and lets `live` mean it.
    pub(crate) async fn publish(&self, model: &str, version: &str, more: &str) -> anyhow::Result<()> {
        let file = e2e::example("motion").join("models").join(model);
        let line = format!("tidegate publish {} --name motion --version {version} --alias live {more}", file.display());
        self.says(&line, &format!("published model motion {version}")).await.map(drop)
    }

    /// deployment.toml: the model that `live` means, for a group.
    pub(crate) async fn write_deployment(&self) -> anyhow::Result<()> {
        let policy = "[policy]\nprobation = \"1s\"\n";
        let text = format!("group = \"halls\"\n\n[[model]]\nname = \"motion\"\nversion = \"live\"\n\n{policy}");
        std::fs::write(self.reader.path("deployment.toml"), text)?;
        self.says("tidegate fleet group halls --create", "").await.map(drop)
    }

    /// A gateway of the group, which is there when this returns.
    pub(crate) async fn gateway(&mut self, name: &str) -> anyhow::Result<()> {
        self.gateway_with(name, "").await
    }

    /// The same, with more in its gateway.toml.
    pub(crate) async fn gateway_with(&mut self, name: &str, more: &str) -> anyhow::Result<()> {
        self.says("tidegate fleet claim --group halls --out claim.token", "it lets in one gateway until").await?;
        let cloud = "[cloud]\nurl = \"https://localhost:8443\"\nclaim_token_file = \"claim.token\"\n";
        let config = format!(
            "[gateway]\nname = \"{name}\"\nstate_dir = \"state\"\n\n[api]\nlisten = \"off\"\n\n{cloud}\n{more}"
        );
        std::fs::write(self.reader.path("gateway.toml"), self.reader.here(&config))?;
        self.reader.start("tidegate run", "gateway.log")?;
        self.reader.until("the gateway", "tidegate fleet", |said| said.contains(name)).await
    }
}

/// A line of the audit log, as those write it who have broken in.
fn entry() -> Entry {
    let text = || "nothing to see".to_owned();
    Entry { at_ms: Clock::system().now_ms(), who: text(), did: text(), what: text(), detail: serde_json::Value::Null }
}

/// All that a control plane says can be a lie: its database is in the hands of somebody else.
struct Thief(SqliteStore, PathBuf);

impl Thief {
    async fn at(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join("control-plane.db");
        Ok(Self(SqliteStore::open(&file).await?, file))
    }

    async fn newest(&self) -> anyhow::Result<(Release, Deployment)> {
        let page = Page { after: String::new(), limit: 100 };
        let (releases, deployments) =
            (self.0.releases(None, None, &page).await?, self.0.deployments(None, &page).await?);
        let release = releases.last().context("no release")?.envelope.unverified()?;
        Ok((release, deployments.last().context("no deployment")?.envelope.unverified()?))
    }

    /// The first root that the control plane shows is this one, which claim tokens then name.
    async fn begins_with(&self, root: &Envelope) -> anyhow::Result<()> {
        let mut database = SqliteConnection::connect(&format!("sqlite://{}", self.1.display())).await?;
        let replace = sqlx::query("UPDATE roots SET envelope = ? WHERE version = 1").bind(serde_json::to_string(root)?);
        replace.execute(&mut database).await?;
        Ok(database.close().await?)
    }

    async fn means(&self, release: &Release) -> anyhow::Result<()> {
        let (kind, name, version) = (release.kind, release.name.clone(), release.version.to_string());
        let row = AliasRow { kind, name, alias: AliasName::parse("live")?, version, changed_ms: entry().at_ms };
        Ok(self.0.set_alias(&row, &entry()).await?)
    }
}

/// An operator signs what operators and publishers have signed before, above it, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_lies_has_nobody_sign_what_they_did_not_mean() -> anyhow::Result<()> {
    let team = Team::new().await?;
    team.publish("motion-first.onnx", "1.0.0", "").await?;
    team.write_deployment().await?;
    team.says("tidegate deploy", "signing deployment 1 of group/halls: back to 1 at the lowest").await?;
    team.publish("motion.onnx", "2.0.0", "").await?;
    team.says("tidegate deploy --floor 2 --comment 'fewer false alarms'", "deployment 2 of group/halls is desired")
        .await?;
    team.says("tidegate fleet deployments", "fewer false alarms").await?;

    let thief = Thief::at(&team.reader.path("cloud")).await?;
    let stranger = SecretKey::generate()?;
    let (release, deployment) = thief.newest().await?;

    // An older version, which was signed, as the new one.
    thief.means(&Release { version: "1.0.0".parse()?, ..release.clone() }).await?;
    let older = "`live` of model motion means 1.0.0 now, older than 2.0.0, which was deployed last";
    team.ends("tidegate deploy", 2, older).await?;
    team.ends("tidegate deploy --preview", 2, "hint: if you want that, name the version: `--use model/motion=1.0.0`")
        .await?;

    // A version that no publisher has signed.
    let forged = Release { version: "3.0.0".parse()?, ..release.clone() };
    let envelope = Envelope::sign(&forged, &[&stranger])?;
    thief.0.add_release(envelope.digest()?, &forged, &envelope, &entry()).await?;
    thief.means(&forged).await?;
    team.ends("tidegate deploy", 1, "the control plane shows a release that is not to be believed").await?;
    thief.means(&release).await?;

    // A number and a floor that would leave no others.
    let forged = Deployment { number: 9_007_199_254_740_990, floor: 9_007_199_254_740_990, ..deployment };
    let envelope = Envelope::sign(&forged, &[&stranger])?;
    thief.0.add_deployment(envelope.digest()?, &forged, &envelope, &entry()).await?;
    let strange = "deployment 9007199254740990 of group/halls, which no operator has signed";
    team.ends("tidegate deploy", 1, strange).await?;
    team.ends("tidegate deploy --number 2", 2, "has deployment 2 already").await?;
    team.ends("tidegate deploy --number 3 --floor 1", 2, "it is 2 now, and only rises").await?;
    let shown = team
        .says("tidegate deploy --preview --number 3", "deployment 3 of group/halls would be: back to 2 at the lowest")
        .await?;
    ensure!(shown.contains("model/motion 2.0.0 (release "), "{shown}");
    // For the control plane once it was mended: as long as it holds the forged one, it takes nothing below.
    team.says("tidegate deploy --number 3 --out next.json", "next.json is deployment 3 of group/halls, signed").await?;
    team.ends("tidegate deploy next.json", 2, "does not follow 9007199254740990").await?;

    // A control plane of somebody else, by the same name.
    let theirs = Team::new().await?;
    let root = theirs.reader.path("config/tidegate/root.json");
    let trusts = format!("tidegate deploy --number 4 --root {}", root.display());
    team.ends(&trusts, 1, "the roots of the control plane do not follow the one that this laptop trusts").await?;
    let swap = format!("mv config/tidegate/root.json own.json && cp {} config/tidegate/root.json", root.display());
    let claim = "tidegate fleet claim --group halls";
    team.ends(&format!("{swap} && {claim}"), 1, "do not follow the one that this laptop trusts").await?;
    team.says(&format!("mv own.json config/tidegate/root.json && {claim}"), "tgc1.").await?;
    // And a laptop that was told of no root signs nothing.
    team.says("rm config/tidegate/root.json && tidegate fleet roots", "sha256:").await?;
    team.ends("tidegate deploy --number 4", 2, "this laptop trusts no root yet").await?;
    team.says(claim, "warning: this laptop trusts no root yet, so that the token's is the control plane's word")
        .await?;
    team.ends(&format!("tidegate fleet roots --trust sha256:{}", "0".repeat(64)), 2, "has no root of trust").await?;
    let trust = "tidegate fleet roots --trust $(tidegate fleet roots | grep -o 'sha256:.*')";
    team.says(trust, "is what this laptop trusts from now on").await?;
    team.says("tidegate deploy --number 4 --preview", "would be: back to 2 at the lowest").await?;

    // A claim token by which gateways would begin with a root of somebody else: older than the one that the laptop has come to, it is not looked at
    // any more among those that are shown.
    let next = "tidegate keygen root --from config/tidegate/root.json --expires 900d --send";
    team.says(next, "the control plane has root 2").await?;
    team.says(claim, "tgc1.").await?;
    let genuine: Root =
        Envelope::parse(&std::fs::read(team.reader.path("config/tidegate/root.json"))?)?.unverified()?;
    let forged = Root { expires_ms: genuine.expires_ms + 1, ..genuine };
    thief.begins_with(&Envelope::sign(&forged, &[&stranger])?).await?;
    let said = team.ends(claim, 1, "which this laptop does not trust").await?;
    ensure!(said.contains("the claim token names root") && !said.contains("tgc1."), "it is not handed over:\n{said}");
    Ok(())
}

/// Two operators and two publishers have to sign; a key that is lost signs nothing any more, and gateways know at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_people_sign_and_a_lost_key_is_replaced() -> anyhow::Result<()> {
    let mut team = Team::new().await?;
    team.publish("motion-first.onnx", "1.0.0", "").await?;
    team.write_deployment().await?;
    team.gateway("hall-1").await?;
    team.says("tidegate deploy --wait", "deployment 1 of group/halls is desired").await?;

    // Anna has a laptop, a key and a token of her own.
    let anna = "XDG_CONFIG_HOME=anna tidegate";
    let of_anna = "--cloud https://localhost:8443 --ca cloud/ca.pem --token-file anna.token";
    team.says("tidegate fleet token anna --role operator --expires 90d --out anna.token", "holds the token").await?;
    team.says(&format!("{anna} keygen key operator"), "anna/tidegate/keys/operator.pem is secret").await?;
    let add = "--add operator=anna/tidegate/keys/operator.pub --threshold operator=2";
    team.says(&format!("tidegate keygen root --from config/tidegate/root.json {add} --send"), "has root 2").await?;

    let missing = "1 of the 2 signatures that it needs";
    team.ends("tidegate deploy", 2, &format!("deployment 2 of group/halls is not sent: it has {missing}")).await?;
    let said = team.says("tidegate deploy --out next.json", missing).await?;
    ensure!(said.contains("`tidegate deploy next.json` adds another operator's"), "{said}");
    let (_, roots) = team.reader.run("tidegate fleet roots | sed -n 2p | grep -o 'sha256:.*'").await?;
    team.ends(&format!("{anna} deploy next.json {of_anna}"), 2, "this laptop trusts no root yet").await?;
    team.says(&format!("{anna} fleet roots --trust {} {of_anna}", roots.trim()), "trusts from now on").await?;
    team.says(&format!("{anna} deploy next.json --wait {of_anna}"), "deployment 2 of group/halls is desired").await?;
    team.says(&format!("{anna} deploy next.json {of_anna}"), "deployment 2 of group/halls is desired").await?;
    team.says("tidegate deploy --out late.json", "deployment 3 of group/halls").await?;

    // Ben publishes with the first one.
    team.says("tidegate keygen key ben", "ben.pem is secret").await?;
    let add = "--add publisher=config/tidegate/keys/ben.pub --threshold publisher=2";
    team.says(&format!("tidegate keygen root --from config/tidegate/root.2.json {add} --send"), "has root 3").await?;
    let motion =
        format!("tidegate publish {} --version 2.0.0", e2e::example("motion").join("models/motion.onnx").display());
    team.ends(&motion, 2, "the release is signed by 1 of the keys that may sign it, and needs 2").await?;
    team.says(&format!("{motion} --out motion.json"), "--release motion.json` adds another publisher's").await?;
    team.ends("tidegate deploy", 1, "hint: publish the same files as a new version").await?;
    let second = format!("{motion} --release motion.json --key config/tidegate/keys/ben.pem --alias live");
    team.says(&second, "published model motion 2.0.0").await?;

    // The first operator's laptop is lost: another key takes its place.
    team.says("tidegate keygen key operator-2", "operator-2.pem is secret").await?;
    let change =
        "--remove operator=config/tidegate/keys/operator.pub --add operator=config/tidegate/keys/operator-2.pub";
    team.says(&format!("tidegate keygen root --from config/tidegate/root.3.json {change} --send"), "has root 4")
        .await?;
    team.ends("tidegate deploy", 2, "may not sign as operator: root 4 of trust does not list it").await?;
    team.ends("tidegate deploy --preview", 0, "deployment 3 of group/halls would be").await?;
    let keys = "--key config/tidegate/keys/operator-2.pem --key anna/tidegate/keys/operator.pem";
    team.says(&format!("tidegate deploy --wait {keys}"), "deployment 3 of group/halls is desired").await?;

    // What waited for Anna's signature meanwhile is not what it was.
    team.ends(&format!("{anna} deploy late.json {of_anna}"), 2, "hint: it was overtaken").await?;

    // The root key itself: the next root is signed by the old one and the new one.
    team.says("tidegate keygen key root-2", "root-2.pem is secret").await?;
    let rotate = "--from config/tidegate/root.4.json --rotate root=config/tidegate/keys/root-2.pub --send";
    team.says(&format!("tidegate keygen root {rotate}"), "it does not hold yet").await?;
    let both = "tidegate keygen sign config/tidegate/root.5.json --key config/tidegate/keys/root-2.pem --send";
    team.says(both, "the control plane has root 5").await?;
    let old = "tidegate keygen root --from config/tidegate/root.5.json --expires 900d";
    team.says(old, "it does not hold yet").await?;
    team.ends("tidegate fleet roots --add config/tidegate/root.6.json", 2, "root 6 is signed by 0 of the keys").await?;
    team.says(&format!("tidegate deploy --wait {keys}"), "deployment 4 of group/halls is desired").await?;
    Ok(())
}

/// The control plane is lost, and comes back from a copy that is older than what gateways run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_goes_on_after_its_control_plane_was_restored() -> anyhow::Result<()> {
    let mut team = Team::new().await?;
    team.publish("motion-first.onnx", "1.0.0", "").await?;
    team.write_deployment().await?;
    team.gateway("hall-1").await?;
    team.says("tidegate deploy --wait", "deployment 1 of group/halls is desired").await?;
    team.says("tidegate cloud backup copy", "copy is a copy: its rows, and 1 blob (").await?;
    team.publish("motion.onnx", "2.0.0", "").await?;
    // Above what the copy has, and back to nothing of that.
    team.says("tidegate deploy --wait --floor 2", "deployment 2 of group/halls is desired").await?;

    team.reader.kill_first()?;
    team.says("mv cloud lost && tidegate cloud restore copy && cp lost/admin.token cloud/", "restored ").await?;
    team.serve().await?;
    // The gateway is let in, and goes on with what it runs: what the copy wants was superseded.
    team.reader
        .until("the gateway says so", "tidegate fleet show hall-1", |said| said.contains("is superseded for good"))
        .await?;
    team.ends("tidegate fleet releases", 0, "1.0.0").await?;
    team.publish("motion.onnx", "2.0.1", "").await?;

    // An operator whose laptop remembers goes on above it; one whose laptop does not, and uses a number twice, is told what to do.
    team.says("mv config/tidegate/trust aside", "").await?;
    team.says("tidegate deploy", "deployment 2 of group/halls is desired").await?;
    let twice = "what was signed once never changes";
    team.reader.until("the gateway refuses it", "tidegate fleet show hall-1", |said| said.contains(twice)).await?;
    team.says("rm -r config/tidegate/trust && mv aside config/tidegate/trust", "").await?;
    let said = team.says("tidegate deploy --wait", "deployment 3 of group/halls is desired").await?;
    ensure!(said.contains("warning: ") && said.contains("back to 2 at the lowest"), "{said}");
    Ok(())
}

/// A line that breaks in the middle of an upload costs what was under way, not what has arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_where_it_was_cut() -> anyhow::Result<()> {
    const BYTES: u64 = 48 << 20;
    let team = Team::new().await?;
    let link = e2e::Link::to(([127, 0, 0, 1], team.port).into()).await?;
    std::fs::File::create(team.reader.path("python.wasm"))?.set_len(BYTES)?;
    let part = || -> u64 {
        let parts = std::fs::read_dir(team.reader.path("cloud/blobs/part")).into_iter().flatten().flatten();
        parts.filter_map(|part| part.metadata().ok()).map(|part| part.len()).sum()
    };
    let publish = format!(
        "tidegate publish python.wasm --kind runtime --version 3.14.0 --cloud https://localhost:{} 2>&1",
        link.address().port()
    );
    let cuts = async {
        let mut had = 0;
        for _ in 0..3 {
            e2e::until("more of it arrives", async || part() > had + (4 << 20)).await?;
            link.cut();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let kept = part();
            ensure!(kept > had && kept < BYTES, "{kept} of {BYTES} bytes, {had} before");
            had = kept;
            link.restore();
        }
        // Never less than what was there: it does not begin again.
        while part() >= had {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        ensure!(part() == 0, "the upload began again: {} of {had} bytes are there", part());
        anyhow::Ok(())
    };
    tokio::try_join!(team.says(&publish, "published runtime python 3.14.0 (48 MiB)"), cuts)?;
    Ok(())
}

/// What gateways send and are asked for: records in both forms, the log, the shadow and what differs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_logs_and_shadows_are_at_hand() -> anyhow::Result<()> {
    let mut team = Team::new().await?;
    team.says("tidegate fleet group halls --create", "").await?;
    e2e::Guest::append("readings").write(&team.reader.path("keep"), "1.0.0")?;
    let function = e2e::site::guest("keep", "ovens/#", "capabilities = [\"stream:readings\"]");
    let stream = "[stream.readings]\nuplink = { cloud = true }\n";
    let broker = "[embedded_broker]\nlisten = \"127.0.0.1:1883\"\n";
    team.gateway_with("hall-1", &format!("{broker}{stream}{function}")).await?;
    let device = e2e::Device::connect(team.reader.broker()).await?;
    for celsius in [20, 21, 22] {
        device.publish("ovens/1", format!(r#"{{"oven":"a, \"b\"","celsius":{celsius}}}"#), 1).await?;
    }
    let lines = "tidegate fleet records --gateway hall-1 --stream readings";
    team.ends("tidegate fleet records --gateway hall-7", 2, "hall-7").await?;
    team.reader.until("three records", lines, |said| said.lines().count() == 3).await?;
    let said = team.says(lines, r#""celsius":20"#).await?;
    for line in said.lines() {
        let record: serde_json::Value = serde_json::from_str(line)?;
        ensure!(record["gateway"] == "hall-1" && record["stream"] == "readings", "{line}");
    }
    let said = team.says(&format!("{lines} --format csv"), "gateway").await?;
    ensure!(said.lines().count() == 4 && said.contains("celsius"), "a heading and three records:\n{said}");
    team.says(&format!("{lines} --from 2100-01-01T00:00:00Z | wc -l"), "0").await?;
    team.ends(&format!("{lines} --from yesterday"), 2, "hint: write for example `2026-11-22T10:00:00Z`").await?;

    team.says("timeout 2 tidegate fleet logs hall-1 --minutes 1 || true", "following hall-1 for 1 min").await?;
    let log = "tidegate fleet logs hall-1 --no-ask";
    team.reader.until("the log", log, |said| said.contains("the agent runs")).await?;
    team.ends("tidegate fleet logs hall-2", 2, "hint: `tidegate fleet` lists the gateways").await?;

    let said = team.says("tidegate fleet shadow hall-1", "desired: ").await?;
    ensure!(said.contains("reported: ") && said.contains("delta: {}"), "{said}");
    team.says("tidegate fleet shadow hall-1 --set '{\"interval\": 10}'", "desired is at version 1").await?;
    let said = team.says("tidegate fleet shadow hall-1", "\"interval\": 10").await?;
    ensure!(said.split("delta: ").nth(1).is_some_and(|delta| delta.contains("interval")), "{said}");
    team.ends("tidegate fleet shadow hall-1 --set interval=10", 2, "hint: write for example").await?;
    // The control plane gets another name while it serves.
    let cloud = format!("tidegate fleet --cloud https://127.0.0.1:{}", team.port);
    team.ends(&cloud, 3, "hint: ").await?;
    team.says("tidegate cloud certify --name 127.0.0.1", "its certificate is for localhost, 127.0.0.1").await?;
    team.reader.until("the new certificate", &cloud, |said| said.contains("hall-1")).await?;
    Ok(())
}
