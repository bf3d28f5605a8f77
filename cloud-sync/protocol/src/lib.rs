//! What gateways, the control plane and those who sign say to each other, and what makes it trusted.
//!
//! No I/O and no clock: time comes in as an argument, bytes as slices. So both sides, the command line and the tests run the very same checks.
//!
//! # Who signs what
//! | document | signed by | says |
//! |---|---|---|
//! | [`Root`] | root keys, off-line | which keys hold which [`Role`], and how many of them must sign |
//! | [`Release`] | publisher, off-line | what one version of a function, model, layer or runtime is, and the most that it may do |
//! | [`Deployment`] | operator, off-line | which versions a target may run, with which settings and rights |
//! | [`Desired`] | the control plane's on-line key | which of those deployments one gateway should run now |
//!
//! The split is Uptane's; the checks are those of the TUF specification 1.0 (section 5.3 and following), in [`trust`].

mod canonical;
pub mod capability;
pub mod deployment;
pub mod desired;
pub mod digest;
pub mod envelope;
pub mod key;
pub mod limits;
pub mod name;
pub mod parsers;
pub mod provision;
pub mod refused;
pub mod release;
pub mod report;
pub mod request;
pub mod root;
pub mod topic;
pub mod trust;
pub mod verified;

pub use self::deployment::{Artifact, Deployment, Target};
pub use self::desired::{Desired, DesiredAnswer};
pub use self::digest::Digest;
pub use self::envelope::{Document, Envelope, EnvelopeError, Signature};
pub use self::key::{KeyId, PublicKey, SecretKey};
pub use self::refused::Refused;
pub use self::release::{Blob, Kind, NativeCode, Release};
pub use self::root::{Role, RoleKeys, Root};
pub use self::trust::Trust;
pub use self::verified::{Verified, VerifiedDeployment};
