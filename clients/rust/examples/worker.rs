//! Takes tasks until Ctrl-C, eight at a time, then finishes what it has begun.

use std::time::Duration;

use taskyard_client::proto::{Payload, QueueName};
use taskyard_client::{ClientOptions, Worker};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let worker = Worker::new(ClientOptions::new("ws://127.0.0.1:7070")?, QueueName::parse("emails")?)
        .concurrency(8)
        .on_event(|event| eprintln!("{event:?}"));
    worker
        .run(
            |delivery| async move {
                let number: u64 = delivery.payload().decode()?;
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(Payload::json(&(number * 2))?)
            },
            tokio::signal::ctrl_c(),
        )
        .await?;
    Ok(())
}
