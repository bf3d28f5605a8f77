//! The root of trust: which keys may sign what.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::envelope::Document;
use crate::key::{KeyId, PublicKey};
use crate::limits::{ROOT_BYTES_MAX, SIGNATURES_MAX};
use crate::refused::Refused;

/// What a key may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The next root.
    Root,
    /// Releases: what a version is.
    Publisher,
    /// Deployments: what a target may run.
    Operator,
    /// Desired documents: which of them a gateway should run now. Its key is on-line, with the control plane.
    Online,
}

/// The keys of one role; `threshold` different ones must have signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleKeys {
    /// By their ids.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// At least 1.
    pub threshold: usize,
}

impl RoleKeys {
    /// All of `keys`, of which `threshold` must sign.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>, threshold: usize) -> Self {
        Self { keys: keys.into_iter().map(|key| (key.id(), key)).collect(), threshold }
    }
}

/// Version N + 1 is signed by the root keys of version N and by its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Counts from 1, without gaps.
    pub version: u64,
    /// Unix time. Past it no new deployment is accepted; what runs goes on.
    pub expires_ms: u64,
    /// Who may sign what; every role is there.
    pub roles: BTreeMap<Role, RoleKeys>,
    /// Those of the publishers who may sign releases of the agent, and how many of them must; without it nobody may. It is no role, because
    /// gateways of before it know all roles, and would refuse a root with another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<RoleKeys>,
}

impl Document for Root {
    const TYPE: &'static str = "root";
    const BYTES_MAX: usize = ROOT_BYTES_MAX;
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Root, Self::Publisher, Self::Operator, Self::Online];

    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Publisher => "publisher",
            Self::Operator => "operator",
            Self::Online => "online",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Root {
    /// The keys of `role`.
    ///
    /// # Errors
    /// When it has none.
    pub fn keys(&self, role: Role) -> Result<&RoleKeys, Refused> {
        self.roles.get(&role).ok_or_else(|| self.malformed(format!("it has no keys of the role `{role}`")))
    }

    /// What every root must keep to, whoever signed it.
    ///
    /// # Errors
    /// With what it does not.
    pub fn check(&self) -> Result<(), Refused> {
        if self.version == 0 {
            return Err(self.malformed("versions count from 1".to_owned()));
        }
        for role in Role::ALL {
            let RoleKeys { keys, threshold } = self.keys(role)?;
            if *threshold == 0 || *threshold > keys.len() || keys.len() > SIGNATURES_MAX {
                let count = keys.len();
                return Err(self.malformed(format!("{threshold} of {count} keys must sign for the role `{role}`")));
            }
            if let Some((id, key)) = keys.iter().find(|(id, key)| key.id() != **id) {
                return Err(self.malformed(format!("key {} is listed under the id {id}", key.id())));
            }
        }
        if let Some(RoleKeys { keys, threshold }) = &self.agents {
            let publishers = self.keys(Role::Publisher)?;
            if *threshold == 0 || *threshold > keys.len() {
                let count = keys.len();
                return Err(self.malformed(format!("{threshold} of {count} keys must sign for agents")));
            }
            if let Some((id, _)) = keys.iter().find(|(id, key)| publishers.keys.get(id) != Some(key)) {
                return Err(self.malformed(format!("key {id} may sign agents and is no publisher's")));
            }
        }
        // What is on-line can be stolen by who breaks in: it must be good for nothing else.
        let online = self.keys(Role::Online)?;
        for role in [Role::Root, Role::Publisher, Role::Operator] {
            if let Some(id) = self.keys(role)?.keys.keys().find(|id| online.keys.contains_key(id)) {
                return Err(self.malformed(format!("key {id} has the role `{role}` beside `online`")));
            }
        }
        Ok(())
    }

    fn malformed(&self, why: String) -> Refused {
        Refused::Malformed { document: format!("root {}", self.version), why }
    }
}
