//! What a fresh node is filled with, by the same API that operators use.

use serde_json::{Value, json};

use super::folder::Secrets;
use crate::cli::Outcome;
use crate::cli::client::Client;

pub(super) const DOMAIN: &str = "demo.test";
pub(super) const ALICE: &str = "alice@demo.test";
pub(super) const BOB: &str = "bob@demo.test";
/// Writes the trickle of mail: nobody else's limits are touched by it.
pub(super) const TRAFFIC: &str = "traffic@demo.test";
pub(super) const NETWORK: &str = "127.0.0.9/32";

/// Fills a node that has no domain yet; what somebody changed later stays changed.
pub(super) async fn provision(client: &Client, secrets: &Secrets) -> Outcome {
    if client.get("/domains").await?.as_array().is_some_and(|domains| !domains.is_empty()) {
        return Ok(());
    }
    // demo.test does not exist in DNS, so its senders could not pass the default.
    client.patch("/settings", &json!({ "valid_sender_required": "off" })).await?;
    add_users(client, secrets).await
}

async fn add_users(client: &Client, secrets: &Secrets) -> Outcome {
    client.post("/domains", &json!({ "name": DOMAIN, "contact": "postmaster@demo.test" })).await?;
    let users: [(&str, Value, Value); 5] = [
        (ALICE, secrets.alice.clone().into(), Value::Null),
        (BOB, secrets.bob.clone().into(), Value::Null),
        (DOMAIN, secrets.domain.clone().into(), Value::Null),
        (TRAFFIC, secrets.traffic.clone().into(), Value::Null),
        (NETWORK, Value::Null, DOMAIN.into()),
    ];
    for (login, password, owner) in users {
        client.post("/users", &json!({ "login": login, "password": password, "owner": owner })).await?;
    }
    Ok(())
}
