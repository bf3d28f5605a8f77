//! What goes wrong in a round, and when: a little in the demo, everything at once under `--torture`.

use std::fmt;

use super::acts::Act;

/// Something that goes wrong, or right again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mishap {
    CutUplink,
    RestoreUplink,
    CutBroker,
    RestoreBroker,
    /// Until [`Mishap::FreeDisk`], or until the agent is killed: the limit is its process's.
    FillDisk,
    FreeDisk,
    Kill,
    /// What people do, right or wrong.
    People(Act),
}

impl fmt::Display for Mishap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::People(act) = self {
            return act.fmt(f);
        }
        f.write_str(match self {
            Self::People(_) => "",
            Self::CutUplink => "the uplink is cut",
            Self::RestoreUplink => "the uplink is back",
            Self::CutBroker => "the link to the local broker is cut",
            Self::RestoreBroker => "the link to the local broker is back",
            Self::FillDisk => "the disk is full: each write of the agent to a file fails (its RLIMIT_FSIZE is 0)",
            Self::FreeDisk => "the disk has room again",
            Self::Kill => "the agent is killed with SIGKILL, in the middle of its work",
        })
    }
}

/// Mishaps, each when so many hundredths of the samples are sent.
pub(super) type Plan = &'static [(usize, Mishap)];

/// What a gateway that is managed sees on a lively day. While people do something samples come slowly, so there is room behind each act.
pub(super) const LOOP: Plan = &[
    (24, Mishap::People(Act::BetterModel)),
    (42, Mishap::CutUplink),
    (50, Mishap::Kill),
    (62, Mishap::RestoreUplink),
    (66, Mishap::People(Act::BadVersion)),
    (88, Mishap::People(Act::Forged)),
];

/// What a gateway has to bear on any day.
pub(super) const USUAL: Plan = &[(25, Mishap::CutUplink), (45, Mishap::Kill), (70, Mishap::RestoreUplink)];

/// What it has to bear on its worst.
pub(super) const TORTURE: Plan = &[
    (5, Mishap::Kill),
    // A link that flaps.
    (12, Mishap::CutUplink),
    (13, Mishap::RestoreUplink),
    (14, Mishap::CutUplink),
    (15, Mishap::RestoreUplink),
    (16, Mishap::CutBroker),
    (18, Mishap::RestoreBroker),
    (22, Mishap::FillDisk),
    (32, Mishap::FreeDisk),
    (36, Mishap::CutUplink),
    (40, Mishap::Kill),
    (48, Mishap::CutBroker),
    (54, Mishap::RestoreBroker),
    // Killed while nothing can be written, and without a link.
    (60, Mishap::FillDisk),
    (66, Mishap::Kill),
    (74, Mishap::RestoreUplink),
    (78, Mishap::Kill),
    (82, Mishap::Kill),
    (86, Mishap::CutUplink),
    (88, Mishap::FillDisk),
    (94, Mishap::FreeDisk),
    (96, Mishap::RestoreUplink),
];

/// Whether commits fail: then there are sequences that no record has, since none is given out twice.
pub(super) fn fails_commits(plan: Plan) -> bool {
    plan.iter().any(|(_, mishap)| *mishap == Mishap::FillDisk)
}

/// How often each kind happens in `plan`, in words.
pub(super) fn account(plan: Plan) -> String {
    let count = |kind: Mishap| plan.iter().filter(|(_, mishap)| *mishap == kind).count();
    format!(
        "the agent is killed {} times, the uplink cut {} times, the link to the local broker {} times,\n\
         and the disk full {} times",
        count(Mishap::Kill),
        count(Mishap::CutUplink),
        count(Mishap::CutBroker),
        count(Mishap::FillDisk)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_is_restored_and_in_order() {
        for plan in [LOOP, USUAL, TORTURE] {
            assert!(plan.is_sorted_by_key(|(at, _)| *at) && plan.iter().all(|(at, _)| *at < 100));
            let (mut uplink, mut broker, mut disk) = (true, true, true);
            for (at, mishap) in plan {
                match mishap {
                    Mishap::CutUplink => assert!(std::mem::replace(&mut uplink, false), "{at}"),
                    Mishap::RestoreUplink => assert!(!std::mem::replace(&mut uplink, true), "{at}"),
                    Mishap::CutBroker => assert!(std::mem::replace(&mut broker, false), "{at}"),
                    Mishap::RestoreBroker => assert!(!std::mem::replace(&mut broker, true), "{at}"),
                    Mishap::FillDisk => assert!(std::mem::replace(&mut disk, false), "{at}"),
                    Mishap::FreeDisk => assert!(!std::mem::replace(&mut disk, true), "{at}"),
                    Mishap::People(_) => assert!(uplink && broker && disk, "people reach it: {at}"),
                    // An agent that starts again waits for its broker, and has room.
                    Mishap::Kill => {
                        assert!(broker, "{at}");
                        disk = true;
                    }
                }
            }
            assert!(uplink && broker && disk, "all is well at the end");
        }
    }
}
