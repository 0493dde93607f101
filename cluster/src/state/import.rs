//! Imports: Users are staged in parts, invisible, and taken in one step.
//!
//! Bounds: [`USERS_MAX`] Users per import, [`IMPORTS_MAX`] imports; one that is not committed
//! within an hour of its first part is dropped.

use serde::{Deserialize, Serialize};

use super::due::Due;
use super::{Key, State};
use crate::command::{ImportReport, NewUser, Outcome, Refusal};
use crate::name::Timestamp;

const USERS_MAX: usize = 1_000_000;
const IMPORTS_MAX: usize = 8;
const MEMORY_MS: u64 = 3_600_000;

/// Staged Users, in the parts in which they came.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Import {
    pub(super) head: ImportHead,
    pub(super) parts: Vec<Vec<NewUser>>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct ImportHead {
    pub(super) begun: Timestamp,
}

impl ImportHead {
    pub(super) fn expires(&self) -> Timestamp {
        self.begun.plus_millis(MEMORY_MS)
    }
}

impl State {
    pub(super) fn import_stage(&mut self, id: u64, users: Vec<NewUser>) -> Result<Outcome, Refusal> {
        if !self.imports.contains_key(&id) {
            self.import_begin(id)?;
        }
        let Some(import) = self.imports.get_mut(&id) else { return Err(Refusal::UnknownImport(id)) };
        let staged: usize = import.parts.iter().map(Vec::len).sum();
        if staged + users.len() > USERS_MAX {
            return Err(Refusal::ImportTooLarge(u32::try_from(USERS_MAX).unwrap_or(u32::MAX)));
        }
        let part = u32::try_from(import.parts.len()).unwrap_or(u32::MAX);
        import.parts.push(users);
        self.touch(Key::ImportPart { import: id, part });
        Ok(Outcome::Done)
    }

    fn import_begin(&mut self, id: u64) -> Result<(), Refusal> {
        if self.imports.len() >= IMPORTS_MAX {
            return Err(Refusal::TooManyImports(u32::try_from(IMPORTS_MAX).unwrap_or(u32::MAX)));
        }
        let head = ImportHead { begun: self.clock.seen };
        self.due.insert((head.expires(), Due::Import(id)));
        self.imports.insert(id, Import { head, parts: Vec::new() });
        self.touch(Key::Import(id));
        Ok(())
    }

    /// Leaves nothing staged, whatever the answer.
    pub(super) fn import_commit(&mut self, id: u64, strict: bool) -> Result<Outcome, Refusal> {
        let import = self.imports.get(&id).cloned().ok_or(Refusal::UnknownImport(id))?;
        self.drop_import(id);
        let users: Vec<NewUser> = import.parts.into_iter().flatten().collect();
        let mut report = ImportReport::default();
        if strict {
            self.check_all(&users)?;
        }
        for (position, user) in (0_u32..).zip(users) {
            match self.user_add(user) {
                Ok(_) => report.added += 1,
                Err(refusal) => report.refused.push((position, refusal)),
            }
        }
        Ok(Outcome::Imported(report))
    }

    fn check_all(&self, users: &[NewUser]) -> Result<(), Refusal> {
        let mut logins = std::collections::BTreeSet::new();
        let mut refused = 0_u32;
        let mut first = None;
        for user in users {
            let twice = !logins.insert(&user.login);
            let found = self.user_fault(user).err().or_else(|| twice.then(|| Refusal::UserExists(user.login.clone())));
            if let Some(found) = found {
                refused += 1;
                first.get_or_insert_with(|| found.to_string());
            }
        }
        first.map_or(Ok(()), |first| Err(Refusal::ImportRefused(refused, first)))
    }

    pub(super) fn drop_import(&mut self, id: u64) {
        let Some(import) = self.imports.remove(&id) else { return };
        self.due.remove(&(import.head.expires(), Due::Import(id)));
        self.touch(Key::Import(id));
        for (part, _) in (0_u32..).zip(&import.parts) {
            self.touch(Key::ImportPart { import: id, part });
        }
    }
}
