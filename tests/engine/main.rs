//! One suite, held against every engine: the promises of `taskyard::engine`, asked through its trait.
//!
//! What an engine does differently it has declared, in its `Capabilities`; the suite asks for exactly
//! that.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod nearby;
mod rigs;
mod suite;

/// The suite, for one engine.
macro_rules! conforms {
    ($name:ident, $rig:ty: $($test:ident)*) => {
        mod $name {
            $(
                #[tokio::test]
                async fn $test() {
                    crate::suite::$test(<$rig>::default()).await;
                }
            )*
        }
    };
    ($($name:ident: $rig:ty),*) => {
        $(conforms! { $name, $rig:
            capabilities_are_as_declared
            stored_is_said_in_order_and_of_nothing_that_was_not_committed
            what_is_stored_survives_the_process_if_the_engine_is_durable
            a_replay_gives_back_each_task_s_operations_in_order
            a_finished_task_does_not_come_back_unfinished
            what_was_forgotten_may_go
            nothing_to_write_is_stored_too
            a_stop_in_order_is_told_at_the_next_start
            dropped_without_a_stop_is_no_stop_in_order
            starts_are_numbered
            there_is_room_again_once_the_work_is_done
            payloads_come_back_as_they_were
            payloads_are_fetched_as_they_were_whatever_goes_on
            schedules_come_back_as_they_were_last
        })*
    };
}

conforms! { memory: crate::rigs::InMemory, embedded: crate::rigs::OnDisk }
