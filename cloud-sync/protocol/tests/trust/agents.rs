//! Who may sign the agent itself.

use sync_protocol::capability::Capabilities;
use sync_protocol::release::NativeCode;
use sync_protocol::{Kind, Refused, Release, RoleKeys, Root};

use crate::support::*;

/// A version of the agent for one processor.
fn agent(version: &str) -> Release {
    let release = Release { kind: Kind::Agent, capabilities: Capabilities::default(), ..function("tidegate", version) };
    let target = "aarch64-unknown-linux-gnu".to_owned();
    let build = NativeCode { target, compatibility: "full".to_owned(), blob: release.blob };
    Release { native: vec![build], ..release }
}

/// With another publisher, and these who may sign agents.
fn root(signers: &Signers, agents: Option<RoleKeys>) -> Root {
    let mut root = Root { agents, ..signers.root(2) };
    let publishers = root.roles.get_mut(&sync_protocol::Role::Publisher).unwrap();
    publishers.keys.insert(key(98).public().id(), key(98).public());
    root
}

#[test]
fn nobody_signs_agents_unless_the_root_says_so() {
    let mut site = Site::new();
    let answer = site.answer_with(1, &[agent("1.1.0")], |_| ());
    let refused = site.refuses(&answer);
    assert_eq!(refused, Refused::NoAgents { artifact: "agent/tidegate 1.1.0".to_owned() });
    assert!(refused.hint().contains("--agents"));

    let agents = RoleKeys::new([site.signers.publishers[0].public()], 1);
    let next = sign(&root(&site.signers, Some(agents)), &site.signers.roots[..2]);
    site.trust.update_roots(&[next]).unwrap();
    site.run(&answer);
}

#[test]
fn agents_are_signed_by_publishers_whom_the_root_names() {
    let mut site = Site::new();
    let agents = RoleKeys::new([key(98).public()], 1);
    let next = sign(&root(&site.signers, Some(agents)), &site.signers.roots[..2]);
    site.trust.update_roots(&[next]).unwrap();
    let by_another = site.answer_with(1, &[agent("1.1.0")], |_| ());
    let refused = site.refuses(&by_another).to_string();
    assert!(refused.contains("as one of the agent, is signed by 0 of the keys"), "{refused}");
    let functions = site.answer_with(1, &[function("oven", "1.0.0")], |_| ());
    assert!(site.verify(&functions).is_ok(), "what is no agent is signed by any publisher");

    // Whom the root names for agents must be a publisher, and there must be enough of them.
    for agents in [RoleKeys::new([key(97).public()], 1), RoleKeys::new([], 0), RoleKeys::new([key(98).public()], 2)] {
        assert_reason(&root(&site.signers, Some(agents)).check().unwrap_err(), "Malformed");
    }
}

#[test]
fn an_agent_that_contradicts_itself_is_refused() {
    let good = agent("1.1.0");
    assert!(good.check().is_ok());
    assert_reason(&Release { native: Vec::new(), ..good.clone() }.check().unwrap_err(), "Malformed");
    let other = function("other", "1.0.0").blob;
    assert_reason(&Release { blob: other, ..good.clone() }.check().unwrap_err(), "Malformed");
    let twice = vec![good.native[0].clone(), good.native[0].clone()];
    assert_reason(&Release { native: twice, ..good }.check().unwrap_err(), "Malformed");
}
