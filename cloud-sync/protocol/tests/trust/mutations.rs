//! Whatever is changed on the way, by accident or on purpose: it is refused, or it says what it said before.

use fastrand::Rng;
use serde_json::{Map, Value};
use sync_protocol::{Deployment, Desired, DesiredAnswer, Release, Verified};

use crate::support::*;

const SEED: u64 = 7;
const FLIPS: usize = 2_000;
const CHANGES: usize = 1_500;

/// An answer with all that there is, and a site that would take it.
fn full(site: &mut Site, number: u64) -> DesiredAnswer {
    let version = format!("{number}.0.0");
    let mut oven = function("oven", &version);
    oven.models = vec![artifact("motion")];
    oven.minimum = Some("1.0.0".parse().unwrap());
    site.answer_with(number, &[oven, model("motion", &version)], |deployment| {
        deployment.artifacts[0].capabilities = capabilities(&["mqtt:publish:results/1"]);
        deployment.artifacts[0].settings.insert("timeout".to_owned(), "3s".into());
        deployment.streams.insert("readings".to_owned(), serde_json::json!({ "max_bytes": "1 MiB" }));
        deployment.comment = "for the winter".to_owned();
    })
}

/// All that is acted on. A signature has two ways to be written, so envelopes may differ.
fn said(verified: &Verified) -> (&Option<Desired>, &Deployment, &[Release]) {
    let deployment = verified.deployment.as_ref().unwrap();
    (&verified.desired, deployment.deployment(), deployment.releases())
}

#[test]
fn a_flipped_bit_is_refused_or_changes_nothing() {
    let mut site = Site::new();
    let answer = full(&mut site, 2);
    let genuine = site.verify(&answer).unwrap();
    let bytes = serde_json::to_vec(&answer).unwrap();
    let (mut random, mut refused) = (Rng::with_seed(SEED), 0);
    for _ in 0..FLIPS {
        let mut bytes = bytes.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] ^= 1 << random.u8(..8);
        }
        match DesiredAnswer::parse(&bytes).and_then(|answer| site.verify(&answer)) {
            Err(_) => refused += 1,
            Ok(verified) => assert_eq!(said(&verified), said(&genuine)),
        }
    }
    assert!(refused > FLIPS * 9 / 10, "{refused} of {FLIPS}");
}

/// Walks to some place of it.
fn place<'a>(random: &mut Rng, value: &'a mut Value) -> &'a mut Value {
    let inner = match value {
        Value::Object(members) => members.len(),
        Value::Array(values) => values.len(),
        _ => 0,
    };
    if inner == 0 || random.u8(..4) == 0 {
        return value;
    }
    let n = random.usize(..inner);
    match value {
        Value::Object(members) => place(random, members.values_mut().nth(n).unwrap()),
        Value::Array(values) => place(random, &mut values[n]),
        _ => unreachable!("has nothing within"),
    }
}

fn change(random: &mut Rng, value: &mut Value) {
    match place(random, value) {
        Value::Object(members) => match random.bool().then(|| members.keys().next().cloned()).flatten() {
            Some(name) => drop(members.remove(&name)),
            None => drop(members.insert(format!("x{}", random.u8(..)), random.u8(..).into())),
        },
        Value::Array(values) => match random.u8(..3) {
            0 => drop(values.pop()),
            1 if values.len() > 1 => values.reverse(),
            _ => values.push(values.first().cloned().unwrap_or(Value::Null)),
        },
        Value::String(text) => text.insert(random.usize(..=text.len()), random.alphanumeric()),
        Value::Number(number) => *number = (number.as_u64().unwrap_or(0) ^ 1 << random.u8(..40)).into(),
        other => *other = Value::Bool(random.bool()),
    }
}

fn envelopes(answer: &mut Value) -> Vec<&mut Value> {
    let Value::Object(answer) = answer else { unreachable!("an answer is an object") };
    let mut found = Vec::new();
    for (name, part) in answer {
        match part {
            Value::Array(list) => found.extend(list.iter_mut()),
            part => {
                assert!(name == "desired" || name == "deployment");
                found.push(part);
            }
        }
    }
    found
}

/// Signed parts that are changed, with the signatures that the genuine ones had.
#[test]
fn a_changed_document_is_never_accepted() {
    let mut site = Site::new();
    let answer = serde_json::to_value(full(&mut site, 2)).unwrap();
    let mut random = Rng::with_seed(SEED);
    for n in 0..CHANGES {
        let mut changed = answer.clone();
        {
            let mut parts = envelopes(&mut changed);
            let which = random.usize(..parts.len());
            let signed = &mut parts[which]["signed"];
            let before = signed.clone();
            change(&mut random, signed);
            if *signed == before {
                continue;
            }
        }
        let read = serde_json::from_value::<DesiredAnswer>(changed.clone());
        assert!(
            read.is_err() || site.verify(&read.unwrap()).is_err(),
            "change {n} of seed {SEED} was accepted: {changed}"
        );
    }
}

/// Signatures that are dropped, doubled, or moved from one document to another.
#[test]
fn signatures_hold_for_their_own_document_only() {
    let mut site = Site::new();
    let answer = serde_json::to_value(full(&mut site, 2)).unwrap();
    let other = serde_json::to_value(full(&mut site, 3)).unwrap();
    let (mut random, mut refused) = (Rng::with_seed(SEED), 0);
    for _ in 0..CHANGES / 5 {
        let mut changed = answer.clone();
        let mut from = if random.bool() { &answer } else { &other }.clone();
        let which = random.usize(..4);
        let taken = envelopes(&mut from)[random.usize(..4)]["signatures"].clone();
        let part = &mut envelopes(&mut changed)[which]["signatures"];
        let genuine = part.clone();
        match random.u8(..3) {
            0 => drop(part.as_array_mut().unwrap().pop()),
            1 => *part = taken,
            _ => {
                let first = part[0].clone();
                part.as_array_mut().unwrap().fill(first);
            }
        }
        if *part == genuine {
            continue;
        }
        let changed: DesiredAnswer = serde_json::from_value(changed).unwrap();
        assert_reason(&site.refuses(&changed), "Signatures");
        refused += 1;
    }
    assert!(refused > 100, "{refused}");
}

/// Every combination of the parts of two genuine answers.
#[test]
fn parts_of_two_answers_never_make_a_third() {
    let mut site = Site::new();
    let [one, two] = [2, 3].map(|number| full(&mut site, number));
    let mut accepted = Vec::new();
    for mix in 0..16_u8 {
        let pick = |bit: u8| if mix & bit == 0 { &one } else { &two };
        let mixed = DesiredAnswer {
            roots: Vec::new(),
            desired: pick(1).desired.clone(),
            deployment: pick(2).deployment.clone(),
            releases: vec![pick(4).releases[0].clone(), pick(8).releases[1].clone()],
        };
        if site.verify(&mixed).is_ok() {
            accepted.push(mix);
        }
    }
    assert_eq!(accepted, [0, 15]);
}

/// A member that is there twice: whoever keeps the first and whoever keeps the last would read different documents.
#[test]
fn a_doubled_member_is_refused_wherever_it_stands() {
    let mut site = Site::new();
    let text = serde_json::to_string(&full(&mut site, 2)).unwrap();
    let mut tried = 0;
    for (at, _) in text.match_indices("\"number\":") {
        let doubled = format!("{}\"number\":9,{}", &text[..at], &text[at..]);
        assert_reason(&DesiredAnswer::parse(doubled.as_bytes()).unwrap_err(), "Malformed");
        tried += 1;
    }
    for (from, to) in
        [("\"signed\":", "\"signed\":{},\"signed\":"), ("\"signatures\":", "\"signatures\":[],\"signatures\":")]
    {
        let doubled = text.replacen(from, to, 1);
        assert_reason(&DesiredAnswer::parse(doubled.as_bytes()).unwrap_err(), "Malformed");
    }
    assert_eq!(tried, 2);
    let unknown = text.replacen("{\"d", "{\"else\":1,\"d", 1);
    assert_reason(&DesiredAnswer::parse(unknown.as_bytes()).unwrap_err(), "Malformed");
}

/// A member that an older gateway does not know is signed like all others, and does not hinder it.
#[test]
fn a_member_of_a_later_version_is_signed_and_passed_over() {
    let mut site = Site::new();
    let desired = site.desired(None);
    let mut members = serde_json::to_value(&desired).unwrap();
    members["colour"] = "green".into();
    let later = sign(&Later(members.as_object().unwrap().clone()), &site.signers.online);
    let answer = DesiredAnswer { desired: Some(later.clone()), ..Default::default() };
    assert_eq!(site.verify(&answer).unwrap().desired, Some(desired));
    let changed = tampered(&later, |signed| signed["colour"] = "red".into());
    assert_reason(&site.refuses(&DesiredAnswer { desired: Some(changed), ..Default::default() }), "Signatures");
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
struct Later(Map<String, Value>);

impl sync_protocol::Document for Later {
    const TYPE: &'static str = "desired";
    const BYTES_MAX: usize = 1024;
}
