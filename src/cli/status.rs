//! `taskyard status`

use std::process::ExitCode;

use super::api::Api;
use super::output::{Output, Shown, print_line, terminal_width};
use super::{Failed, Remote, queues, workers};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    let api = Api::at(&args.remote)?;
    let queues = api.get("/v1/queues").await?;
    let workers = api.get("/v1/workers").await?;
    match args.shown.output {
        Output::Json => {
            let whole =
                serde_json::json!({"queues": queues.value["queues"], "workers": workers.value["workers"]});
            print_line(&format!("{whole:#}"))?;
        }
        Output::Table => {
            let width = terminal_width();
            let queues = queues::table(queues.list("queues"), width);
            print_line(&format!("{queues}\n\n{}", workers::table(workers.list("workers"), width)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
