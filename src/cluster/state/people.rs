//! Principals, what they were granted, and invites.
//!
//! Owns: which key a name signs with, which role it has where and until when.
//! Never: says which role a kind of record needs; `rules` does.
//! Invariant: a key belongs to one name; a disabled name, a used or expired invite may do nothing.

use super::requests::ActorNo;
use crate::id::{Label, PrincipalId, TimeMs, VolumeId};
use crate::ledger::record::body::{PublicKeys, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a role holds: in one volume, or (`None`) in the network.
pub type Scope = Option<VolumeId>;

/// What the one who redeems an invite becomes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InviteTerms {
    pub role: Role,
    pub scope: Scope,
    pub voter: bool,
    pub until: TimeMs,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Standing {
    Active,
    Disabled,
    /// The key of an invite's one-time secret: it may introduce one principal, and nothing else.
    Invite(InviteTerms),
    Used,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Person {
    pub no: ActorNo,
    pub keys: PublicKeys,
    pub standing: Standing,
    /// May register itself as a voter: its invite said so.
    pub may_vote: bool,
}

impl Person {
    pub fn is_active(&self) -> bool {
        self.standing == Standing::Active
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct People {
    persons: BTreeMap<Label, Person>,
    names: BTreeMap<PrincipalId, Label>,
    /// Until when (`None`: until revoked) a name has a role.
    grants: BTreeMap<(Label, Scope, Role), Option<TimeMs>>,
}

impl People {
    pub fn find(&self, name: &Label) -> Option<&Person> {
        self.persons.get(name)
    }

    /// The name that signs with this key now.
    pub fn name_of(&self, key: &PrincipalId) -> Option<&Label> {
        self.names.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Label, &Person)> {
        self.persons.iter()
    }

    /// All that was granted and not revoked, expired or not.
    pub fn grants(&self) -> impl Iterator<Item = (&Label, Scope, Role, Option<TimeMs>)> {
        self.grants.iter().map(|((name, scope, role), until)| (name, *scope, *role, *until))
    }

    /// Whether an active name has the role at `now`.
    pub fn has(&self, name: &Label, scope: Scope, role: Role, now: TimeMs) -> bool {
        let active = self.find(name).is_some_and(Person::is_active);
        let until = self.grants.get(&(name.clone(), scope, role));
        active && until.is_some_and(|until| until.is_none_or(|end| now <= end))
    }

    /// The role with the most rights that a name has in a volume at `now`.
    pub fn role_in(&self, name: &Label, volume: VolumeId, now: TimeMs) -> Option<Role> {
        let roles = [Role::Owner, Role::Writer, Role::Reader, Role::Auditor];
        roles.into_iter().find(|role| self.has(name, Some(volume), *role, now))
    }

    pub fn may_write(&self, name: &Label, volume: VolumeId, now: TimeMs) -> bool {
        matches!(self.role_in(name, volume, now), Some(Role::Owner | Role::Writer))
    }

    pub fn is_network_owner(&self, name: &Label, now: TimeMs) -> bool {
        self.has(name, None, Role::Owner, now)
    }

    /// Who has any role in the volume at `now`, each name once.
    pub fn members(&self, volume: VolumeId, now: TimeMs) -> Vec<&Label> {
        let here = self.grants.keys().filter(|(_, scope, _)| *scope == Some(volume));
        let mut names: Vec<&Label> = here.map(|(name, _, _)| name).collect();
        names.dedup();
        names.retain(|name| self.role_in(name, volume, now).is_some());
        names
    }

    /// Whether somebody else could still administer `scope` without `name`. A grant that ends
    /// does not count: the last owner must not lock everybody out.
    pub fn has_other_owner(&self, scope: Scope, name: &Label) -> bool {
        self.grants.iter().any(|((other, at, role), until)| {
            let owns = *at == scope && *role == Role::Owner && until.is_none();
            owns && other != name && self.find(other).is_some_and(Person::is_active)
        })
    }

    /// Why these keys cannot be registered under this name.
    pub fn misfit(&self, name: &Label, keys: &PublicKeys) -> Option<String> {
        let owner = self.names.get(&keys.signing)?;
        (owner != name).then(|| format!("the key of {name} is registered as {owner} already"))
    }

    pub(super) fn register(&mut self, name: &Label, keys: PublicKeys, standing: Standing) {
        let no = ActorNo(self.persons.len() as u32);
        self.names.insert(keys.signing, name.clone());
        if let Some(person) = self.persons.get_mut(name) {
            if person.keys.signing != keys.signing {
                self.names.remove(&person.keys.signing);
            }
            person.keys = keys;
        } else {
            let person = Person { no, keys, standing, may_vote: false };
            self.persons.insert(name.clone(), person);
        }
    }

    pub(super) fn grant(&mut self, name: &Label, scope: Scope, role: Role, until: Option<TimeMs>) {
        self.grants.insert((name.clone(), scope, role), until);
    }

    pub(super) fn revoke(&mut self, name: &Label, scope: Scope) {
        self.grants.retain(|(who, at, _), _| who != name || *at != scope);
    }

    pub(super) fn revoke_role(&mut self, name: &Label, scope: Scope, role: Role) {
        self.grants.remove(&(name.clone(), scope, role));
    }

    pub(super) fn set_standing(&mut self, name: &Label, standing: Standing) {
        if let Some(person) = self.persons.get_mut(name) {
            person.standing = standing;
        }
    }

    pub(super) fn let_vote(&mut self, name: &Label) {
        if let Some(person) = self.persons.get_mut(name) {
            person.may_vote = true;
        }
    }
}
