//! Clients that all send at once, each going on to the next node where one refuses, breaks off or says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::{Client, letter};
use super::node::PASSWORD;
use super::wait_at_most;

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";
/// Over one connection; then the next node has its turn, so that no node is left by all clients.
const SESSION_MESSAGES_MAX: usize = 5;
/// Before the next node is tried.
const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends with the test.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    addresses: Mutex<Vec<SocketAddr>>,
    /// Subjects that were answered with 250. Each attempt has one of its own.
    accepted: Mutex<BTreeSet<String>>,
    /// Other answers, and how often they came.
    refused: Mutex<BTreeMap<String, usize>>,
    stop: AtomicBool,
    /// Of each client, between messages.
    pace: Duration,
}

impl Load {
    /// The first client begins with the first node, the second with the second.
    pub fn start(clients: usize, pace: Duration, addresses: Vec<SocketAddr>) -> Self {
        let shared = Arc::new(Shared { addresses: Mutex::new(addresses), pace, ..Shared::default() });
        let clients = (0..clients).map(|client| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.send(client))
        });
        Self { clients: clients.collect(), shared }
    }

    /// Where the nodes are now.
    pub fn find(&self, addresses: Vec<SocketAddr>) {
        *self.shared.addresses.lock().unwrap() = addresses;
    }

    pub fn count(&self) -> usize {
        self.shared.accepted.lock().unwrap().len()
    }

    /// Waits until so many more were accepted.
    pub fn wait_for_more(&self, what: &str, more: usize) {
        let goal = self.count() + more;
        wait_at_most(PATIENCE, &format!("{what}, after {:?}", self.refused()), || (self.count() >= goal).then_some(()));
    }

    pub fn refused(&self) -> BTreeMap<String, usize> {
        self.shared.refused.lock().unwrap().clone()
    }

    /// The subjects of everything that was answered with 250.
    pub fn stop(mut self) -> BTreeSet<String> {
        self.end();
        self.shared.accepted.lock().unwrap().clone()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.clients.drain(..).for_each(|client| client.join().unwrap());
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn send(&self, client: usize) {
        let (mut node, mut number) = (client, 0);
        while !self.stop.load(Ordering::Relaxed) {
            let addresses = self.addresses.lock().unwrap().clone();
            if let Some(session) = Client::try_login(addresses[node % addresses.len()], ALICE, PASSWORD) {
                self.send_over(session, client, &mut number);
            }
            node += 1;
            std::thread::sleep(PAUSE);
        }
    }

    /// Until the node refuses or the connection breaks, or the next one has its turn.
    fn send_over(&self, mut session: Client, client: usize, number: &mut usize) {
        for _ in 0..SESSION_MESSAGES_MAX {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            *number += 1;
            let subject = format!("{client}-{number}");
            let Some(answer) = session.try_mail(ALICE, BOB, &letter(ALICE, BOB, &subject, "hello")) else { return };
            if answer.code != 250 {
                // Without what differs from time to time.
                let words: Vec<&str> = answer.text.split(' ').take(6).collect();
                *self.refused.lock().unwrap().entry(words.join(" ")).or_default() += 1;
                return;
            }
            self.accepted.lock().unwrap().insert(subject);
            std::thread::sleep(self.pace);
        }
    }
}
