//! Submits a hundred tasks, as many at a time as the window holds.

use taskyard_client::proto::{Payload, QueueName, Submit};
use taskyard_client::{Client, ClientOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(ClientOptions::new("ws://127.0.0.1:7070")?).await?;
    let mut receipts = Vec::new();
    for number in 0..100 {
        let submit = Submit::new(QueueName::parse("emails")?, Payload::json(&number)?);
        receipts.push(client.send(submit).await?);
    }
    for receipt in receipts {
        receipt.await?;
    }
    client.close().await;
    Ok(())
}
