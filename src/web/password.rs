//! Password hashes: argon2id in PHC form.

use argon2::password_hash::phc::PasswordHash;

use crate::user::hash_password;

/// Octets; longer ones are refused, so that nobody can make a node hash megabytes.
pub const PASSWORD_LENGTH_MAX: usize = 1024;

/// Prefix of what is taken as a hash instead of a password.
const HASH_PREFIX: &str = "$argon2id$";

#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum PasswordError {
    #[error("the password is empty")]
    Empty,
    #[error("the password is longer than {PASSWORD_LENGTH_MAX} octets")]
    TooLong,
    #[error("the password holds a NUL, which no client can send")]
    Nul,
    #[error("the password begins with {HASH_PREFIX} but is not a hash in PHC form")]
    Hash,
    #[error("cannot hash the password")]
    Failed,
}

/// Checks a password or a ready hash without the work of hashing.
pub fn check(password: &str) -> Result<(), PasswordError> {
    match password {
        "" => Err(PasswordError::Empty),
        _ if password.len() > PASSWORD_LENGTH_MAX => Err(PasswordError::TooLong),
        _ if password.contains('\0') => Err(PasswordError::Nul),
        _ if password.starts_with(HASH_PREFIX) && PasswordHash::new(password).is_err() => Err(PasswordError::Hash),
        _ => Ok(()),
    }
}

/// The hash to store: about 25 ms of a core, unless the password is a hash already.
pub fn to_hash(password: &str) -> Result<String, PasswordError> {
    check(password)?;
    if password.starts_with(HASH_PREFIX) {
        return Ok(password.to_owned());
    }
    hash_password(password).map_err(|_| PasswordError::Failed)
}

/// As [`to_hash`], away from the threads that serve connections.
pub async fn to_hash_blocking(password: String) -> Result<String, PasswordError> {
    tokio::task::spawn_blocking(move || to_hash(&password)).await.unwrap_or(Err(PasswordError::Failed))
}

/// Hashes many at once on every core but one; in the order in which they were given.
pub async fn to_hashes(passwords: Vec<String>) -> Vec<Result<String, PasswordError>> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| (cores.get() - 1).max(1));
    let count = passwords.len();
    let share = count.div_ceil(threads).max(1);
    let shares: Vec<_> = passwords
        .chunks(share)
        .map(<[String]>::to_vec)
        .map(|part| tokio::task::spawn_blocking(move || part.iter().map(|one| to_hash(one)).collect::<Vec<_>>()))
        .collect();
    let mut hashes = Vec::with_capacity(count);
    for (task, part) in shares.into_iter().zip(passwords.chunks(share)) {
        match task.await {
            Ok(done) => hashes.extend(done),
            Err(_) => hashes.extend(part.iter().map(|_| Err(PasswordError::Failed))),
        }
    }
    hashes
}
