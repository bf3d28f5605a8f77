//! Why what came from the cloud, or on a stick, was refused. Whatever the reason: nothing of it was taken over, and what runs goes on.

use std::fmt;

use semver::Version;

use crate::Digest;
use crate::capability::Capability;
use crate::deployment::Target;
use crate::envelope::EnvelopeError;
use crate::name::{ArtifactName, GatewayName};

/// One variant for each reason; the attack of the TUF specification that it stops stands beside it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not readable as what it should be.
    #[error("{document} is malformed: {why}")]
    Malformed {
        /// Which.
        document: String,
        /// Why.
        why: String,
    },
    /// Endless data.
    #[error("{document} has {count} {unit}, more than the {max} that are allowed")]
    TooMuch {
        /// Which.
        document: String,
        /// How many there are.
        count: usize,
        /// Of what.
        unit: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// Arbitrary installation; a key that was stolen where several must sign.
    #[error("{document} is signed by {valid} of the keys that may sign it, and needs {threshold}")]
    Signatures {
        /// Which.
        document: String,
        /// Different keys of the role whose signature is valid.
        valid: usize,
        /// How many it takes.
        threshold: usize,
    },
    /// Nobody may sign agents for this fleet.
    #[error("{artifact} is a release of the agent, and the root of trust lets nobody sign those")]
    NoAgents {
        /// What, with its version.
        artifact: String,
    },
    /// A false root on the first contact.
    #[error("the root of trust is {offered}, not {expected}, which the claim token or the file names")]
    NotTheAnchor {
        /// What was pinned.
        expected: Digest,
        /// What came.
        offered: Digest,
    },
    /// Rollback of the root, or a gap.
    #[error("root {offered} does not follow root {trusted}")]
    RootVersion {
        /// The version that is trusted.
        trusted: u64,
        /// The version that came.
        offered: u64,
    },
    /// Indefinite freeze.
    #[error("{document} expired on {}, and it is {} now", Moment(*.expired_ms), Moment(*.now_ms))]
    Expired {
        /// Which.
        document: String,
        /// When, in Unix time.
        expired_ms: u64,
        /// The time by which that was judged: the clock's, or while that was never set the newest that an off-line signer wrote down.
        now_ms: u64,
    },
    /// Rollback: an older answer, played again.
    #[error("desired document {offered} is older than {trusted}, which was accepted before")]
    Older {
        /// The sequence that is trusted.
        trusted: u64,
        /// The sequence that came.
        offered: u64,
    },
    /// An answer for somebody else.
    #[error("the desired document is for gateway `{addressee}`, and this is `{gateway}`")]
    WrongGateway {
        /// Whom it names.
        addressee: GatewayName,
        /// Who we are.
        gateway: GatewayName,
    },
    /// Mix and match: the parts do not belong together.
    #[error("{document} is {offered}, not {wanted}, which {by} names")]
    Mixed {
        /// Which part.
        document: String,
        /// What came.
        offered: String,
        /// What was to come.
        wanted: String,
        /// Who says so.
        by: &'static str,
    },
    /// A deployment of another group or gateway.
    #[error("deployment {number} is for {target}, which gateway `{gateway}` is not, nor a member of")]
    WrongTarget {
        /// Its number.
        number: u64,
        /// Whom it is for.
        target: Target,
        /// Who we are.
        gateway: GatewayName,
    },
    /// Resurrection of what an operator has superseded for good.
    #[error("deployment {number} of {target} is superseded for good: the lowest that it may go back to is {floor}")]
    Superseded {
        /// Its number.
        number: u64,
        /// Whom it is for.
        target: Target,
        /// The lowest number.
        floor: u64,
    },
    /// An older deployment without the control plane's word that it should run again.
    #[error("deployment {number} of {target} is older than {running}, and only the control plane can ask to go back")]
    Behind {
        /// Its number.
        number: u64,
        /// Whom it is for.
        target: Target,
        /// The number that must be reached.
        running: u64,
    },
    /// The same name with other content.
    #[error("{what} was {known} before and is {offered} now: what was signed once never changes")]
    Changed {
        /// Which.
        what: String,
        /// What was accepted before.
        known: Digest,
        /// What came.
        offered: Digest,
    },
    /// A part that is named and not there.
    #[error("{what} is missing")]
    Missing {
        /// Which.
        what: String,
    },
    /// Extraneous dependencies: a part that nobody named.
    #[error("{what} is there, and nothing that was signed names it")]
    Extraneous {
        /// Which.
        what: String,
    },
    /// The same thing twice in one deployment.
    #[error("{what} is there twice")]
    Twice {
        /// Which.
        what: String,
    },
    /// Wrong software: the signed release is something else than the deployment says.
    #[error("the deployment says {wanted}, and the release that it names is {offered}")]
    WrongSoftware {
        /// What the deployment says: `function/oven 1.2.0`.
        wanted: String,
        /// What the release says.
        offered: String,
    },
    /// A version that was mended since.
    #[error("{artifact} is below {minimum}, the lowest version that its publisher still lets run here")]
    BelowMinimum {
        /// What, with its version.
        artifact: String,
        /// The lowest version.
        minimum: Version,
    },
    /// More rights than the publisher allows.
    #[error("{artifact} is granted `{capability}`, which its publisher does not allow")]
    Widened {
        /// What, with its version.
        artifact: String,
        /// The grant.
        capability: Capability,
    },
    /// A setting that says what only the signed part beside it may say.
    #[error("{artifact} has the setting `{key}`, which a deployment may not set")]
    Setting {
        /// What, with its version.
        artifact: String,
        /// The setting.
        key: String,
    },
    /// A function without its model.
    #[error("{artifact} works with model `{model}`, which is not in the deployment")]
    MissingModel {
        /// What, with its version.
        artifact: String,
        /// Its model.
        model: ArtifactName,
    },
}

impl Refused {
    /// Says which `document` it is that an envelope's mistake is about.
    pub fn of(document: impl Into<String>) -> impl FnOnce(EnvelopeError) -> Self {
        move |error| {
            let document = document.into();
            match error {
                EnvelopeError::Threshold { valid, threshold } => Self::Signatures { document, valid, threshold },
                EnvelopeError::TooMuch { count, unit, max } => Self::TooMuch { document, count, unit, max },
                other => Self::Malformed { document, why: other.to_string() },
            }
        }
    }

    /// What who reads it can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Malformed { .. } | Self::TooMuch { .. } => {
                "have it made again by `tidegate publish` or `tidegate deploy` of this version"
            }
            Self::Signatures { .. } => {
                "have it signed by as many holders of keys as the root asks for; if nobody signed this, find out who sent it"
            }
            Self::NoAgents { .. } => "let a publisher sign them: `tidegate keygen root --from ROOT --agents FILE`",
            Self::NotTheAnchor { .. } => {
                "give the gateway a claim token or a root file of the control plane that it talks to"
            }
            Self::RootVersion { .. } => "every root from the trusted one on is needed, in order",
            Self::Expired { .. } => {
                "what runs goes on; sign it again with a later expiry, or set the gateway's clock if that is wrong"
            }
            Self::Older { .. } => {
                "an earlier answer came again; if the control plane was restored from a copy, ask it for a new one"
            }
            Self::WrongGateway { .. } | Self::WrongTarget { .. } => {
                "deploy to this gateway, or to a group that it is a member of"
            }
            Self::Mixed { .. }
            | Self::WrongSoftware { .. }
            | Self::Missing { .. }
            | Self::Extraneous { .. }
            | Self::Twice { .. } => {
                "deploy again from the releases that are published; if that does not help, find out who changed it on the way"
            }
            Self::Superseded { .. } => "sign a new deployment with these versions and a higher number",
            Self::Behind { .. } => {
                "use `tidegate rollback`, or sign a new deployment with these versions and a higher number"
            }
            Self::Changed { .. } => "give it a new version or number",
            Self::BelowMinimum { .. } => "deploy that version or a newer one",
            Self::Widened { .. } => "grant less, or have the publisher sign a release that allows it",
            Self::Setting { .. } => "say it in the release, or in `capabilities` of the deployment",
            Self::MissingModel { .. } => "add the model to the deployment",
        }
    }
}

/// Unix time in milliseconds, for people.
struct Moment(u64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.0 / 60_000;
        let (days, minute) = (minutes / 1440, minutes % 1440);
        // Years from March on, so that the leap day is the last of one; eras of 400 years, which are all alike.
        let (era, day) = ((days + 719_468) / 146_097, (days + 719_468) % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        let year = era * 400 + year + u64::from(month <= 2);
        write!(f, "{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minute / 60, minute % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_as_people_write_it() {
        let show = |ms| Moment(ms).to_string();
        assert_eq!(show(0), "1970-01-01 00:00 UTC");
        assert_eq!(show(951_782_400_000), "2000-02-29 00:00 UTC");
        assert_eq!(show(1_795_391_999_999), "2026-11-22 23:59 UTC");
        assert_eq!(show(4_107_542_400_000), "2100-03-01 00:00 UTC");
    }

    #[test]
    fn every_reason_says_what_to_do() {
        let expired = Refused::Expired { document: "deployment 7".to_owned(), expired_ms: 0, now_ms: 60_000 };
        assert_eq!(
            expired.to_string(),
            "deployment 7 expired on 1970-01-01 00:00 UTC, and it is 1970-01-01 00:01 UTC now"
        );
        assert!(expired.hint().starts_with("what runs goes on"));
    }
}
