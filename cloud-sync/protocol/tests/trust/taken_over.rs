//! Somebody has broken into the control plane: all that was ever uploaded is in their hands, and the on-line key. They can withhold, and choose
//! among what was signed for the group and was not superseded. Nothing else.

use sync_protocol::{DesiredAnswer, Envelope, Target};

use crate::support::*;

/// What the control plane has of one deployment.
type Uploaded = (Envelope, Vec<Envelope>);

impl Site {
    fn uploaded(&self, target: Target, number: u64, change: impl FnOnce(&mut sync_protocol::Deployment)) -> Uploaded {
        let oven = function("oven", &format!("{number}.0.0"));
        let (mut deployment, releases) = deployment(&self.signers, target, number, &[oven]);
        change(&mut deployment);
        (self.signers.deployment(&deployment), releases)
    }

    /// With the stolen key anything can be asked for.
    fn asked(&mut self, uploaded: &Uploaded) -> DesiredAnswer {
        self.answer_for(uploaded.0.clone(), uploaded.1.clone())
    }
}

#[test]
fn it_can_choose_among_what_was_signed_for_the_group() {
    let mut site = Site::new();
    let [one, two, three] = [1, 2, 3].map(|number| site.uploaded(presses(), number, |_| ()));
    for uploaded in [&two, &three, &one, &three, &two] {
        let answer = site.asked(uploaded);
        assert_eq!(site.run(&answer).deployment.unwrap().reference(), reference(&uploaded.0));
        site.restart();
    }
}

#[test]
fn it_cannot_forge() {
    let mut site = Site::new();
    let (document, _) = deployment(&site.signers, presses(), 2, &[function("oven", "2.0.0")]);
    let genuine = site.uploaded(presses(), 2, |_| ());

    let by_online = (sign(&document, &site.signers.online), genuine.1.clone());
    let answer = site.asked(&by_online);
    assert_reason(&site.refuses(&answer), "Signatures");

    let code = tampered(&genuine.1[0], |signed| signed["blob"]["bytes"] = 1.into());
    let answer = site.asked(&(genuine.0.clone(), vec![code]));
    assert_reason(&site.refuses(&answer), "Missing");

    let code = sign(&function("oven", "6.6.6"), &site.signers.online);
    let named =
        tampered(&genuine.0, |signed| signed["artifacts"][0]["release"] = code.digest().unwrap().to_string().into());
    let answer = site.asked(&(named, vec![code]));
    assert_reason(&site.refuses(&answer), "Signatures");

    let root = sign(&site.signers.root(2), &site.signers.online);
    assert_reason(&site.refuses_roots(&[root]), "Signatures");
}

/// The operator grants within what the publisher allows, and nobody else grants.
#[test]
fn it_cannot_widen() {
    let mut site = Site::new();
    let genuine =
        site.uploaded(presses(), 1, |d| d.artifacts[0].capabilities = capabilities(&["mqtt:publish:results/1"]));
    let wide =
        tampered(&genuine.0, |signed| signed["artifacts"][0]["capabilities"] = serde_json::json!(["mqtt:publish:#"]));
    let answer = site.asked(&(wide, genuine.1.clone()));
    assert_reason(&site.refuses(&answer), "Signatures");

    for wide in ["mqtt:publish:#", "mqtt:publish:results/1/#", "stream:readings"] {
        let uploaded = site.uploaded(presses(), 1, |d| d.artifacts[0].capabilities = capabilities(&[wide]));
        let answer = site.asked(&uploaded);
        if wide == "mqtt:publish:results/1/#" {
            assert!(site.verify(&answer).is_ok(), "within the ceiling");
        } else {
            let refused = site.refuses(&answer).to_string();
            assert_eq!(refused, format!("function/oven 1.0.0 is granted `{wide}`, which its publisher does not allow"));
        }
    }
    for key in ["capabilities", "bundle", "name", "version", "file", "tests"] {
        let uploaded =
            site.uploaded(presses(), 1, |d| drop(d.artifacts[0].settings.insert(key.to_owned(), "x".into())));
        let answer = site.asked(&uploaded);
        assert_reason(&site.refuses(&answer), "Setting");
    }
    let answer = site.asked(&genuine);
    assert!(site.verify(&answer).is_ok());
}

/// Below the floor nothing comes back, whether the gateway has run it before or not.
#[test]
fn it_cannot_resurrect() {
    let mut site = Site::new();
    let old: Vec<Uploaded> = (1..=3).map(|number| site.uploaded(presses(), number, |_| ())).collect();
    let answer = site.asked(&old[1]);
    site.run(&answer);
    let newest = site.uploaded(presses(), 4, |d| d.floor = 3);
    let answer = site.asked(&newest);
    site.run(&answer);
    site.restart();
    for superseded in &old[..2] {
        let answer = site.asked(superseded);
        assert_reason(&site.refuses(&answer), "Superseded");
    }
    let answer = site.asked(&old[2]);
    assert_eq!(site.run(&answer).deployment.unwrap().reference().number, 3, "the floor itself may run");
    let answer = site.asked(&old[1]);
    assert_reason(&site.refuses(&answer), "Superseded");
}

/// A hole that a publisher has mended stays mended, in whichever deployment the old version stands.
#[test]
fn it_cannot_bring_back_what_was_mended() {
    let mut site = Site::new();
    let mut mended = function("oven", "1.2.0");
    mended.minimum = Some("1.2.0".parse().unwrap());
    let holed = site.answer_with(1, &[function("oven", "1.1.0")], |_| ());
    site.run(&holed);

    let answer = site.answer_with(2, &[mended], |_| ());
    let verified = site.verify(&answer).unwrap();
    site.trust.accept(&verified);
    let back = site.answer_for(holed.deployment.clone().unwrap(), holed.releases.clone());
    assert!(site.verify(&back).is_ok(), "until it has proved itself, the gateway can go back");
    site.trust.keep(verified.deployment.as_ref().unwrap());
    site.restart();
    assert_eq!(
        site.refuses(&back).to_string(),
        "function/oven 1.1.0 is below 1.2.0, the lowest version that its publisher still lets run here"
    );
    let other = site.answer_with(3, &[function("lamp", "1.0.0"), function("oven", "1.1.9")], |_| ());
    assert_reason(&site.refuses(&other), "BelowMinimum");
    let other = site.answer_with(3, &[function("lamp", "1.0.0"), model("oven", "1.1.0")], |_| ());
    assert!(site.verify(&other).is_ok(), "a model of that name is something else");
}

#[test]
fn it_cannot_mix() {
    let mut site = Site::new();
    let (one, two) = (site.uploaded(presses(), 1, |_| ()), site.uploaded(presses(), 2, |_| ()));
    let answer = site.asked(&(two.0.clone(), one.1.clone()));
    assert_reason(&site.refuses(&answer), "Missing");
    let both = [one.1.clone(), two.1.clone()].concat();
    let answer = site.asked(&(two.0.clone(), both));
    assert_reason(&site.refuses(&answer), "Extraneous");
    let grafted = tampered(&two.0, |signed| {
        signed["artifacts"] = serde_json::to_value(&one.0).unwrap()["signed"]["artifacts"].clone()
    });
    let answer = site.asked(&(grafted, one.1));
    assert_reason(&site.refuses(&answer), "Signatures");
}

/// A function never runs without the model that it was published with.
#[test]
fn it_cannot_take_the_model_away() {
    let mut site = Site::new();
    let mut oven = function("oven", "1.0.0");
    oven.models = vec![artifact("motion")];
    let alone = site.answer_with(1, std::slice::from_ref(&oven), |_| ());
    assert_eq!(
        site.refuses(&alone).to_string(),
        "function/oven 1.0.0 works with model `motion`, which is not in the deployment"
    );
    let together = site.answer_with(1, &[oven.clone(), model("motion", "3.0.0")], |_| ());
    assert!(site.verify(&together).is_ok());
    let no_model = site.answer_with(1, &[oven, function("motion", "3.0.0")], |_| ());
    assert_reason(&site.refuses(&no_model), "MissingModel");
}

#[test]
fn it_cannot_use_what_was_signed_for_others() {
    let mut site = Site::new();
    for target in [Target::Group(group("ovens")), Target::Gateway(gateway("press-2"))] {
        let uploaded = site.uploaded(target.clone(), 1, |_| ());
        let answer = site.asked(&uploaded);
        assert_eq!(
            site.refuses(&answer).to_string(),
            format!("deployment 1 is for {target}, which gateway `press-1` is not, nor a member of")
        );
        let stick = DesiredAnswer { desired: None, ..answer };
        assert_reason(&site.refuses(&stick), "WrongTarget");
    }
    let uploaded = site.uploaded(Target::Gateway(gateway("press-1")), 1, |_| ());
    let answer = site.asked(&uploaded);
    assert!(site.verify(&answer).is_ok());
}

/// What an operator may not sign either: it would not fit together.
#[test]
fn a_deployment_that_contradicts_itself_is_refused() {
    let mut site = Site::new();
    let changes: [fn(&mut sync_protocol::Deployment); 5] = [
        |d| d.floor = 2,
        |d| d.number = 0,
        |d| drop(d.streams.insert("A/B".to_owned(), serde_json::json!({}))),
        |d| d.policy.failed_percent_max = 101,
        |d| d.artifacts.push(d.artifacts[0].clone()),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let answer = site.answer_with(1, &[function("oven", "1.0.0")], change);
        let reason = if n == 4 { "Missing" } else { "Malformed" };
        assert_reason(&site.refuses(&answer), reason);
    }
    let answer = site.answer_with(1, &[function("oven", "1.0.0"), function("oven", "2.0.0")], |_| ());
    assert_reason(&site.refuses(&answer), "Twice");
    let mut locked = function("oven", "1.0.0");
    locked.minimum = Some("1.0.1".parse().unwrap());
    let answer = site.answer_with(1, &[locked], |_| ());
    assert_reason(&site.refuses(&answer), "Malformed");
}
