//! What those trust who compose the next deployment, on a laptop: what a control plane shows them of releases and earlier deployments counts by
//! its signatures only, and what was seen once is not forgotten when the control plane shows less.

use super::{Known, Trust};
use crate::deployment::{Deployment, Target};
use crate::digest::Digest;
use crate::envelope::Envelope;
use crate::refused::Refused;
use crate::release::Release;
use crate::root::Role;
use crate::verified::{Read as _, digest, signers};

/// What is known of a target's deployments, by the word of those who may still sign them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latest {
    /// The highest number.
    pub number: u64,
    /// The lowest number that may run.
    pub floor: u64,
    /// Of the document.
    pub digest: Digest,
}

impl Trust {
    /// A release that somebody shows, when its publishers have signed it and it is what it was before. It is remembered.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn see_release(&mut self, envelope: &Envelope) -> Result<Release, Refused> {
        let release = self.root.verify_release(envelope)?;
        let known = Known { what: release.to_string(), digest: digest("the release", envelope)? };
        self.check_release(&known.what, known.digest)?;
        self.memory.note_release(known, signers(&self.root, Role::Publisher, envelope));
        Ok(release)
    }

    /// A deployment that somebody shows, without its releases, when its operators have signed it. Of each target the newest is remembered.
    ///
    /// # Errors
    /// With what is wrong; also when its number is known with another content.
    pub fn see_deployment(&mut self, envelope: &Envelope) -> Result<Deployment, Refused> {
        let deployment: Deployment = self.root.read(Role::Operator, "the deployment", envelope)?;
        let offered = digest("the deployment", envelope)?;
        if deployment.number == 0 || deployment.floor > deployment.number {
            let why = format!("its number is {} and its floor {}", deployment.number, deployment.floor);
            return Err(Refused::Malformed { document: format!("deployment {deployment}"), why });
        }
        let newest = self.accepted_of(&deployment.target).max_by_key(|accepted| accepted.number);
        if let Some(newest) = newest.filter(|newest| newest.number >= deployment.number) {
            let changed = newest.number == deployment.number && newest.digest != offered;
            let (what, known) = (format!("deployment {deployment}"), newest.digest);
            return if changed { Err(Refused::Changed { what, known, offered }) } else { Ok(deployment) };
        }
        self.memory.accepted.retain(|earlier| earlier.value.target != deployment.target);
        let operators = signers(&self.root, Role::Operator, envelope);
        self.memory.note_deployment(&deployment, offered, operators);
        Ok(deployment)
    }

    /// The newest that was seen for `target`.
    pub fn latest(&self, target: &Target) -> Option<Latest> {
        let newest = self.accepted_of(target).max_by_key(|accepted| accepted.number)?;
        let floor = self.memory.floors.get(&target.to_string()).map_or(1, |floor| floor.value);
        Some(Latest { number: newest.number, floor, digest: newest.digest })
    }
}
