//! One node of `outgate dev`: its place, its process, and what it bound.

use std::net::SocketAddr;

use serde_json::Value;

use super::place::Place;
use super::process::NodeProcess;
use crate::cli::Outcome;
use crate::cli::client::Client;
use crate::cli::failure::Failure;

pub(super) struct Member {
    pub(super) place: Place,
    pub(super) process: NodeProcess,
    /// Once it has told them.
    pub(super) bound: Option<Bound>,
}

#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) submission: SocketAddr,
    pub(super) submissions: SocketAddr,
    pub(super) http: SocketAddr,
}

impl Member {
    /// Starts the process and waits until it answers; that it takes mail may need the others.
    pub(super) async fn start(place: Place) -> Result<Self, Failure> {
        let mut process = NodeProcess::spawn(&place)?;
        process.wait_until_it_answers(&Client::new(place.socket())).await?;
        Ok(Self { place, process, bound: None })
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.place.socket())
    }

    pub(super) async fn wait_until_ready(&mut self) -> Outcome {
        let client = self.client();
        let status = self.process.wait_until_ready(&client).await?;
        self.bound = Some(Bound::of(&status)?);
        Ok(())
    }

    /// Resolves once with its id and how it ended.
    pub(super) async fn ended(&mut self) -> (u64, String) {
        (self.place.id, self.process.ended().await)
    }

    /// Returns when the process answers; whether it takes mail depends on the others, which may all be down.
    pub(super) async fn restart(&mut self) -> Outcome {
        let id = self.place.id;
        if self.process.is_running() {
            return Err(Failure::failed(format!("node {id} is running")));
        }
        self.process = NodeProcess::spawn(&self.place)?;
        let client = self.client();
        self.bound = Some(Bound::of(&self.process.wait_until_it_answers(&client).await?)?);
        Ok(())
    }
}

impl Bound {
    fn of(status: &Value) -> Result<Self, Failure> {
        let address = |value: &Value| {
            let text = value.as_str().or_else(|| value[0].as_str());
            let parsed = text.and_then(|text| text.parse().ok());
            parsed.ok_or_else(|| Failure::failed(format!("the node does not tell its addresses: {status}")))
        };
        Ok(Self {
            submission: address(&status["submission"])?,
            submissions: address(&status["submissions"])?,
            http: address(&status["http"])?,
        })
    }
}
