//! The machine by tables, and by random lives of a gateway.

use sync_protocol::Digest;

use super::*;

const MINUTE: u64 = 60_000;

fn deployment(number: u64) -> DeploymentRef {
    DeploymentRef { number, digest: Digest::of(&number.to_be_bytes()) }
}

fn wanted(number: u64) -> Input {
    Input::Wanted {
        deployment: deployment(number),
        policy: Policy::default(),
        sequence: Some(number),
        try_again: false,
    }
}

fn again(number: u64, sequence: Option<u64>) -> Input {
    Input::Wanted { deployment: deployment(number), policy: Policy::default(), sequence, try_again: true }
}

fn fetched(number: u64) -> Input {
    Input::Fetched { deployment: deployment(number), result: Ok(()) }
}

fn staged(number: u64) -> Input {
    Input::Staged { deployment: deployment(number), result: Ok(()) }
}

fn activated(number: u64) -> Input {
    Input::Activated { deployment: deployment(number), before: Before::default() }
}

fn tick(elapsed_ms: u64, verdict: Verdict) -> Input {
    Input::Tick { elapsed_ms, link: true, verdict: Some(verdict) }
}

fn after(inputs: impl IntoIterator<Item = Input>) -> State {
    let mut state = State::default();
    for input in inputs {
        state.take(input, 1_000);
    }
    state
}

fn trial(number: u64) -> [Input; 4] {
    [wanted(number), fetched(number), staged(number), activated(number)]
}

fn kept(number: u64) -> impl Iterator<Item = Input> {
    trial(number).into_iter().chain([tick(5 * MINUTE, Verdict::Good)])
}

#[track_caller]
fn check(state: &State, phase: Phase, kept: bool, serves: Option<u64>, reason: &str) {
    let progress = state.progress().unwrap();
    assert_eq!((progress.phase, progress.kept, progress.reason.as_str()), (phase, kept, reason));
    assert_eq!(state.serves(), serves.map(deployment));
}

#[test]
fn a_deployment_goes_from_queued_to_kept() {
    let mut state = State::default();
    let steps = [
        (wanted(1), Phase::Queued, false, None),
        (Input::Fetching { deployment: deployment(1), fetched: (1, 9) }, Phase::Downloading, false, None),
        (fetched(1), Phase::Downloading, false, None),
        (staged(1), Phase::Staged, false, None),
        (activated(1), Phase::Active, false, Some(1)),
        (tick(5 * MINUTE - 1, Verdict::Good), Phase::Active, false, Some(1)),
        (tick(1, Verdict::Good), Phase::Active, true, Some(1)),
    ];
    for (input, phase, kept, serves) in steps {
        state.take(input, 1_000);
        check(&state, phase, kept, serves, "");
    }
    assert!(!state.is_busy());
}

#[test]
fn a_bad_one_is_rolled_back_to_what_was_kept() {
    let bad = tick(1, Verdict::Bad("function `f` failed 20 of 20 times".to_owned()));
    let state = after(kept(1).chain(trial(2)).chain([bad]));
    check(&state, Phase::RolledBack, false, Some(1), "function `f` failed 20 of 20 times");
}

#[test]
fn the_look_by_which_a_probation_is_over_is_the_last_one() {
    let state = after(trial(1));
    let is_last = |elapsed_ms| state.yardstick(elapsed_ms).is_some_and(|(.., at_end)| at_end);
    assert!(!is_last(5 * MINUTE - 1) && is_last(5 * MINUTE));
}

#[test]
fn each_step_has_a_deadline() {
    let day = 24 * 60 * MINUTE;
    let late = after(kept(1).chain([wanted(2), tick(day + 1, Verdict::Good)]));
    check(&late, Phase::Failed, false, Some(1), "it was not fetched within 1d");
    let late = after(kept(1).chain([wanted(2), fetched(2), tick(10 * MINUTE + 1, Verdict::Good)]));
    check(&late, Phase::Failed, false, Some(1), "it was not verified, compiled and tested within 10m");
    let doubt = || Verdict::Doubtful("broker `local` is not connected".to_owned());
    let late = after(kept(1).chain(trial(2)).chain([tick(10 * MINUTE - 1, doubt()), tick(1, doubt())]));
    check(&late, Phase::RolledBack, false, Some(1), "broker `local` is not connected");
}

#[test]
fn a_download_may_wait_for_its_link_for_ever() {
    let alone = Input::Tick { elapsed_ms: 365 * 24 * 60 * MINUTE, link: false, verdict: None };
    check(&after([wanted(1), alone]), Phase::Queued, false, None, "");
}

#[test]
fn what_passes_again_is_forgiven() {
    let doubt = tick(7 * MINUTE, Verdict::Doubtful("broker".to_owned()));
    let state = after(trial(1).into_iter().chain([doubt, tick(1, Verdict::Good)]));
    check(&state, Phase::Active, true, Some(1), "");
}

#[test]
fn a_newer_one_supersedes_at_any_step() {
    let steps = [wanted(2), fetched(2), staged(2)];
    for count in 1..=steps.len() {
        let state = after(kept(1).chain(steps.iter().take(count).cloned()).chain([wanted(3)]));
        check(&state, Phase::Queued, false, Some(1), "");
        assert_eq!(state.work(), Some(Work::Fetch(deployment(3))));
    }
    // One on trial goes on serving, and is watched, until its successor is ready.
    let mut state = after(kept(1).chain(trial(2)).chain([wanted(3), fetched(3), staged(3)]));
    assert_eq!(state.serves(), Some(deployment(2)));
    state.take(activated(3), 0);
    assert_eq!((state.serves(), state.kept()), (Some(deployment(3)), Some(deployment(1))));
}

#[test]
fn what_was_given_up_is_not_tried_again_unless_somebody_asks() {
    let bad = || tick(1, Verdict::Bad("bad".to_owned()));
    let mut state = after(kept(1).chain(trial(2)).chain([bad(), wanted(2)]));
    check(&state, Phase::RolledBack, false, Some(1), "bad");
    state.take(again(2, Some(7)), 0);
    assert_eq!(state.work(), Some(Work::Fetch(deployment(2))));
    for input in [fetched(2), staged(2), activated(2), bad(), again(2, Some(7))] {
        state.take(input, 0);
    }
    // The document that asked comes again and again; its wish was fulfilled once.
    check(&state, Phase::RolledBack, false, Some(1), "bad");
    state.take(again(2, None), 0);
    assert_eq!(state.work(), Some(Work::Fetch(deployment(2))));
}

#[test]
fn going_back_by_hand_needs_nothing() {
    let state = after(kept(1).chain(trial(2)).chain([wanted(1)]));
    check(&state, Phase::Active, true, Some(1), "");
    assert_eq!(state.work(), None);
}

#[test]
fn an_agent_that_ends_again_and_again_is_the_deployments_fault() {
    let starts = |count| std::iter::repeat_n(Input::Started, count);
    let state = after(kept(1).chain(trial(2)).chain(starts(3)));
    check(&state, Phase::Active, false, Some(2), "");
    let state = after(kept(1).chain(trial(2)).chain(starts(4)));
    check(&state, Phase::RolledBack, false, Some(1), "the agent ended 3 times while it was watched");
    let state = after(kept(1).chain([wanted(2), fetched(2)]).chain(starts(4)));
    check(&state, Phase::Failed, false, Some(1), "the agent ended 3 times while it was compiled and tested");
    let restarts = std::iter::repeat_n([Input::Stopping, Input::Started], 9).flatten();
    let state = after(kept(1).chain(trial(2)).chain(restarts));
    check(&state, Phase::Active, false, Some(2), "");
}

#[test]
fn what_comes_late_or_twice_changes_nothing() {
    let mut state = after(kept(1).chain([wanted(2)]));
    let before = state.clone();
    for late in [fetched(1), staged(1), activated(1), staged(2), activated(2), wanted(2), wanted(2)] {
        assert!(!state.take(late, 9), "nothing to write down");
    }
    assert_eq!(state, before);
}

#[test]
fn time_and_bytes_are_written_down_now_and_then_only() {
    let mut state = after([wanted(1), Input::Fetching { deployment: deployment(1), fetched: (0, 100) }]);
    assert!(!state.take(Input::Fetching { deployment: deployment(1), fetched: (50, 100) }, 0));
    let writes = (0..600).filter(|_| state.take(tick(1_000, Verdict::Good), 0)).count();
    assert_eq!(writes, 10, "one a minute");
}

/// A gateway that lives at random: what it would do by its state, results of that, wishes, crashes.
struct Life {
    random: fastrand::Rng,
    state: State,
    /// As it was written last.
    disk: String,
    newest: u64,
}

impl Life {
    fn take(&mut self, input: Input) {
        if self.state.take(input, 0) {
            self.disk = serde_json::to_string(&self.state).unwrap();
        }
        self.check();
    }

    fn check(&self) {
        let State { kept, given_up, .. } = &self.state;
        let serves = self.state.serves();
        assert!(serves == self.state.on_trial() || serves == self.state.kept(), "old or new serves");
        assert!(
            given_up.iter().all(|given_up| Some(given_up.deployment) != self.state.on_trial()),
            "given up, and serves"
        );
        let on_disk: State = serde_json::from_str(&self.disk).unwrap();
        assert_eq!(
            (on_disk.serves(), on_disk.work()),
            (serves, self.state.work()),
            "what is done was not written down"
        );
        assert!(kept.is_some() || on_disk.kept().is_none(), "once kept, one is kept");
        assert!(given_up.len() <= GIVEN_UP_MAX);
    }

    /// Whether a result is good, this time.
    fn result(&mut self, good: bool) -> Result<(), String> {
        if good || self.random.u8(..4) > 0 { Ok(()) } else { Err("no luck".to_owned()) }
    }

    /// What comes of the work that the state asks for.
    fn work(&mut self, good: bool) {
        let result = self.result(good);
        match self.state.work() {
            Some(Work::Fetch(deployment)) => self.take(Input::Fetched { deployment, result }),
            Some(Work::Stage(deployment)) => self.take(Input::Staged { deployment, result }),
            Some(Work::Activate(deployment)) => {
                self.take(Input::Activated { deployment, before: Before::default() });
                if let (Err(reason), Some(deployment)) = (result, self.state.on_trial()) {
                    self.take(Input::Unfit { deployment, reason });
                }
            }
            None => {}
        }
    }

    fn step(&mut self) {
        match self.random.u8(..10) {
            0 => {
                self.newest += u64::from(self.random.bool());
                let number = self.random.u64(self.newest.saturating_sub(2).max(1)..=self.newest.max(1));
                let input = if self.random.bool() { wanted(number) } else { again(number, Some(self.newest)) };
                self.take(input);
            }
            1 => {
                self.state = serde_json::from_str(&self.disk).unwrap();
                self.take(Input::Started);
            }
            2 => {
                self.take(Input::Stopping);
                self.state = serde_json::from_str(&self.disk).unwrap();
                self.take(Input::Started);
            }
            3..=5 => {
                let verdict = match self.random.u8(..4) {
                    0 => Verdict::Bad("bad".to_owned()),
                    1 => Verdict::Doubtful("doubtful".to_owned()),
                    _ => Verdict::Good,
                };
                let elapsed_ms = self.random.u64(..3 * MINUTE);
                let link = self.random.bool();
                self.take(Input::Tick { elapsed_ms, link, verdict: Some(verdict) });
            }
            _ => self.work(false),
        }
    }
}

/// Old or new serves in every step of 300 random lives, and each comes to rest once it is left alone.
#[test]
fn old_or_new_serves_whatever_happens_and_it_comes_to_rest() {
    for seed in 0..300 {
        let (state, random) = (State::default(), fastrand::Rng::with_seed(seed));
        let disk = serde_json::to_string(&state).unwrap();
        let mut life = Life { random, state, disk, newest: 1 };
        (0..200).for_each(|_| life.step());
        // Good results from now on.
        for _ in 0..20 {
            life.work(true);
            life.take(tick(MINUTE, Verdict::Good));
        }
        assert!(!life.state.is_busy(), "seed {seed}: {:?}", life.state);
        assert_eq!(life.state.serves(), life.state.kept(), "seed {seed}");
    }
}
