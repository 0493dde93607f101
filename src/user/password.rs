//! argon2id in a bounded pool, so that logins never take all cores nor wait without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

use super::LoginError;

/// Computations that may wait for each core: at 25 ms each, the last of them waits for under two seconds.
const WAITING_PER_CORE_MAX: usize = 64;

/// No random numbers, or a password longer than argon2 takes.
#[derive(thiserror::Error, Debug)]
#[error("cannot hash the password: {0}")]
pub struct HashError(argon2::password_hash::Error);

/// An argon2id hash in PHC form with the parameters of RFC 9106 for little memory (m=19456, t=2, p=1).
pub fn hash_password(password: &str) -> Result<String, HashError> {
    Ok(Argon2::default().hash_password(password.as_bytes()).map_err(HashError)?.to_string())
}

/// Verifies passwords on as many threads as there are cores. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool {
    cores: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
    /// Verified for logins that have no hash, so that they take the same time.
    dummy: Arc<str>,
}

/// Leaves the queue of the pool however the wait ends.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_bounds(cores, cores * WAITING_PER_CORE_MAX)
    }

    fn with_bounds(cores: usize, waiting_max: usize) -> Self {
        // A hash that no password has: without one a login without a hash would only answer faster.
        let dummy = hash_password("").unwrap_or_default();
        Self { cores: Arc::new(Semaphore::new(cores)), waiting: Arc::default(), waiting_max, dummy: dummy.into() }
    }

    /// Whether `password` fits `hash`; without a hash the answer is no, after the same time.
    pub(super) async fn verify(&self, hash: Option<&str>, password: &[u8]) -> Result<bool, LoginError> {
        let waiting = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.waiting_max {
            return Err(LoginError::Unavailable);
        }
        let permit = Arc::clone(&self.cores).acquire_owned().await.map_err(|_| LoginError::Unavailable)?;
        drop(waiting);
        let known = hash.is_some();
        let hash: Arc<str> = hash.map_or_else(|| Arc::clone(&self.dummy), Arc::from);
        let password = password.to_vec();
        let fits = tokio::task::spawn_blocking(move || {
            let fits = fits(&hash, &password);
            drop(permit);
            fits
        });
        fits.await.map(|fits| fits && known).map_err(|_| LoginError::Unavailable)
    }
}

fn fits(hash: &str, password: &[u8]) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn hashes_are_argon2id_with_the_documented_parameters() {
        let hash = hash_password("secret").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(fits(&hash, b"secret") && !fits(&hash, b"Secret") && !fits("no hash", b"secret"));
        assert_ne!(hash, hash_password("secret").unwrap());
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_fits() {
        let pool = Pool::with_bounds(1, 4);
        let hash = hash_password("secret").unwrap();
        assert_eq!(pool.verify(Some(&hash), b"secret").await, Ok(true));
        assert_eq!(pool.verify(Some(&hash), b"other").await, Ok(false));
        assert_eq!(pool.verify(None, b"").await, Ok(false), "the dummy's own password must not open anything");
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let pool = Pool::with_bounds(1, 1);
        let core = pool.cores.acquire().await.unwrap();
        let other = pool.clone();
        let waiting = tokio::spawn(async move { other.verify(None, b"x").await });
        while pool.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.verify(None, b"x").await, Err(LoginError::Unavailable));
        drop(core);
        assert_eq!(waiting.await.unwrap(), Ok(false));
        assert_eq!(pool.waiting.load(Ordering::Relaxed), 0);
    }
}
