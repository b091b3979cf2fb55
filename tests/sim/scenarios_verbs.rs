//! The verbs beyond submit, deliver and settle, each told in a few lines.

use crate::script::check;

// --- Order keys -----------------------------------------------------------------------------

#[test]
fn tasks_of_one_order_key_go_one_at_a_time_and_in_order() {
    check(
        "a subscribe credit 5
         p submit 1 order_key k unconfirmed
         p submit 2 order_key k priority 9 unconfirmed
         p submit 3 order_key other unconfirmed
         < a: 1 attempt 1
         < a: 3 attempt 1
         ? 2
         < 2 queued: blocked by 1
         a nack 1 delay_ms 100 quietly
         ? 2
         < 2 queued: blocked by 1
         + 100ms
         < a: 1 attempt 2 redelivered
         a ack 1 quietly
         < a: 2 attempt 1",
    );
}

#[test]
fn a_deferred_task_frees_its_order_key_and_takes_its_place_again() {
    check(
        "a subscribe credit 1
         p submit 1 order_key k unconfirmed
         p submit 2 order_key k unconfirmed
         p submit 3 order_key k unconfirmed
         < a: 1 attempt 1
         a release 1 delay_ms 50 quietly
         < a: 2 attempt 1
         + 50ms
         < nothing
         a ack 2 quietly
         < nothing
         + 50ms
         < a: 1 attempt 1 redelivered
         a ack 1 quietly
         < a: 3 attempt 1",
    );
}

#[test]
fn an_order_key_is_free_however_its_task_ends() {
    for end in ["a nack 1 dead quietly", "a cut\na subscribe credit 5", "p cancel 1\na cancelled 1 quietly"] {
        let (flag, rest) = match end {
            _ if end.starts_with("a nack") => ("", ""),
            _ if end.starts_with("a cut") => ("", ""),
            _ => ("", "< a: stop 1 10000\n< p: ok leased\n"),
        };
        let said: Vec<&str> = end.lines().collect();
        check(&format!(
            "a subscribe credit 5
             p submit 1 order_key k max_attempts 1 unconfirmed
             p submit 2 order_key k unconfirmed
             < a: 1 attempt 1
             {}
             {rest}{}
             < a: 2 attempt 1{flag}",
            said[0],
            said.get(1).copied().unwrap_or(""),
        ));
    }
    check(
        "p submit 1 order_key k ttl_ms 50 worker absent unconfirmed
         p submit 2 order_key k unconfirmed
         a subscribe
         ? 2
         < 2 queued: blocked by 1
         + 50ms
         < a: 2 attempt 1",
    );
}

#[test]
fn an_order_key_holds_across_a_crash() {
    check(
        "a subscribe credit 5
         p submit 1 order_key k backoff_ms 1000 memory
         p submit 2 order_key k memory
         < p: accepted 1
         < a: 1 attempt 1
         < p: accepted 2
         a nack 1
         < a: settled ok
         crash
         a subscribe credit 5
         + 899ms
         < nothing
         + 202ms
         < a: 1 attempt 2 redelivered
         a ack 1 quietly
         < a: 2 attempt 1 redelivered",
    );
}

/// It stayed in front of its key when it came back, though one that was accepted before had become due.
#[test]
fn one_that_comes_back_does_not_go_before_an_earlier_one_of_its_key() {
    check(
        "p submit 1 order_key k delay_ms 100 unconfirmed
         p submit 2 order_key k worker b unconfirmed
         b subscribe
         < b: 2 attempt 1
         + 100ms
         b cut
         a subscribe
         < a: 1 attempt 1",
    );
}

/// A back-off that had ended before the restart took the key from one that was still waiting.
#[test]
fn after_a_restart_a_back_off_that_is_over_does_not_take_the_key() {
    check(
        "a subscribe credit 1
         p submit 1 order_key k delay_ms 20 backoff_ms 10000 memory
         p submit 2 order_key k memory
         < p: accepted 1
         < p: accepted 2
         < a: 2 attempt 1
         a away
         a subscribe credit 0
         + 20ms
         a credit 1
         < a: 1 attempt 1
         a nack 1
         < a: settled ok
         crash
         a subscribe credit 5
         + 5s
         < nothing
         + 7s
         < a: 1 attempt 2 redelivered
         a ack 1 quietly
         < a: 2 attempt 2 redelivered",
    );
}

// --- Cancel ---------------------------------------------------------------------------------

#[test]
fn what_nobody_has_is_cancelled_at_once() {
    check(
        "p submit q watch
         < p: accepted q
         p submit s delay_ms 1000
         < p: accepted s
         p cancel q
         < p: finished q cancelled attempts 0
         < p: ok cancelled
         p cancel s
         < p: ok cancelled
         p cancel s
         < p: ok cancelled
         p cancel nothing
         < p: error not_found
         a subscribe credit 5
         + 10s
         < nothing
         p submit r unconfirmed
         < a: r attempt 1
         a nack r
         < a: settled ok
         p cancel r
         < p: ok cancelled
         + 60s
         < nothing",
    );
}

#[test]
fn an_ack_within_the_grace_wins_over_a_cancel_and_nothing_else_does() {
    check(
        "a subscribe credit 5
         p submit t watch
         < p: accepted t
         < a: t attempt 1
         p cancel t grace_ms 500
         < a: stop t 500
         < p: ok leased
         a ack t result 1
         < p: finished t done attempts 1 result 1
         < a: settled ok
         p cancel t
         < p: error conflict",
    );
    for (settle, charged) in [("nack t error why", 1), ("cancelled t error why", 0)] {
        check(&format!(
            "a subscribe credit 5
             p submit t watch
             < p: accepted t
             < a: t attempt 1
             p cancel t grace_ms 500
             < a: stop t 500
             < p: ok leased
             a {settle}
             < p: finished t cancelled attempts {charged} error why
             < a: settled ok
             + 60s
             < nothing",
        ));
    }
    check(
        "a subscribe credit 5
         p submit t watch
         < p: accepted t
         < a: t attempt 1
         a cancelled t
         < a: error conflict
         p cancel t grace_ms 500
         < a: stop t 500
         < p: ok leased
         + 500ms
         < a: revoked t cancelled
         < p: finished t cancelled attempts 0
         a ack t
         < a: error lease_lost
         p cancel t
         < p: ok cancelled",
    );
}

#[test]
fn what_is_dead_or_expired_cannot_be_cancelled() {
    check(
        "a subscribe credit 5
         p submit t max_attempts 1 unconfirmed
         < a: t attempt 1
         a nack t quietly
         p cancel t
         < p: error conflict
         p submit u ttl_ms 10 delay_ms 1000 unconfirmed
         + 10ms
         p cancel u
         < p: error conflict",
    );
}

#[test]
fn a_task_to_all_is_cancelled_for_each_recipient() {
    check(
        "a subscribe
         b subscribe credit 0
         p submit t all watch
         < p: accepted t
         < a: t attempt 1
         p cancel t grace_ms 100
         < a: stop t 100
         < p: ok leased
         b credit 1
         < nothing
         a cancelled t quietly
         < p: finished t cancelled delivered 1 acked 0 failed 2, a cancelled, b cancelled",
    );
}

/// Of nobody it was told that one had failed.
#[test]
fn a_task_to_all_of_nobody_can_be_cancelled_before_it_is_durable() {
    check(
        "disk waits
         p submit t all watch
         p cancel t
         disk goes on
         < p: accepted t
         < p: finished t cancelled delivered 0 acked 0 failed 0
         < p: ok cancelled",
    );
}

#[test]
fn a_cancel_that_was_answered_survives_a_crash() {
    check(
        "a subscribe
         p submit t
         < p: accepted t
         < a: t attempt 1
         p cancel t grace_ms 5000
         < a: stop t 5000
         < p: ok leased
         crash
         p watch t
         < p: finished t cancelled attempts 0
         a subscribe
         + 60s
         < nothing",
    );
    check(
        "p submit t
         < p: accepted t
         disk waits
         p cancel t
         < nothing
         crash
         a subscribe
         < a: t attempt 1 redelivered",
    );
}

// --- dedup_id -------------------------------------------------------------------------------

#[test]
fn a_submit_that_is_sent_again_makes_no_second_task() {
    check(
        "p submit t dedup_id d
         < p: accepted t
         p submit t dedup_id d watch
         < p: accepted t duplicate
         a subscribe credit 5
         < a: t attempt 1
         a ack t result 1
         < p: finished t done attempts 1 result 1
         < a: settled ok
         crash
         p submit t dedup_id d watch
         < p: accepted t duplicate
         < p: finished t done attempts 1 result 1
         a subscribe credit 5
         + 599s
         p submit t dedup_id d
         < p: accepted t duplicate
         + 1s
         p submit u dedup_id d
         < p: accepted u
         < a: u attempt 1",
    );
}

#[test]
fn an_id_is_remembered_whatever_became_of_its_task() {
    for end in ["p cancel t quietly", "a nack t dead quietly\nop delete\n< op: 1"] {
        check(&format!(
            "op declare keep_result_ms 1000
             a subscribe credit 1
             p submit t dedup_id d worker a
             < p: accepted t
             < a: t attempt 1
             {}
             + 10s
             {}
             p submit t dedup_id d
             < p: accepted t duplicate
             restart
             p submit t dedup_id d
             < p: accepted t duplicate
             crash
             p submit t dedup_id d
             < p: accepted t duplicate",
            if end.starts_with("p cancel") { "a ack t quietly" } else { end },
            "+ 1s",
        ));
    }
}

/// It got two answers, and events came before `accepted`.
#[test]
fn a_duplicate_has_one_answer_and_it_comes_first() {
    check(
        "op declare keep_result_ms 1000
         a subscribe
         p submit t dedup_id d
         < p: accepted t
         < a: t attempt 1
         a ack t quietly
         + 10s
         p submit t dedup_id d watch
         < p: accepted t duplicate
         < p: error not_found",
    );
    check(
        "p listens
         p submit t dedup_id d watch
         < p: accepted t
         < p: event t 1 queued
         disk waits
         p submit u
         p submit t dedup_id d watch
         < nothing
         disk goes on
         < p: accepted u
         < p: accepted t duplicate
         < p: event t 1 queued",
    );
}

#[test]
fn a_duplicate_is_accepted_only_when_its_first_is_durable() {
    check(
        "disk waits
         p submit t dedup_id d
         p submit t dedup_id d
         < nothing
         disk goes on
         < p: accepted t
         < p: accepted t duplicate",
    );
}

// --- Sessions that are resumed --------------------------------------------------------------

#[test]
fn a_session_that_is_resumed_keeps_what_it_names() {
    check(
        "a resumable
         a subscribe credit 3
         p submit 1 unconfirmed
         p submit 2 unconfirmed
         < a: 1 attempt 1
         < a: 2 attempt 1
         b subscribe credit 5
         a away
         + 4s
         < nothing
         a returns 1
         < a: resumed kept [1] lost 0
         < b: 2 attempt 1 redelivered
         a ack 1
         < a: settled ok
         b ack 2
         < b: settled ok
         + 60s
         < nothing",
    );
}

#[test]
fn kept_leases_survive_a_crash_and_a_restart() {
    for how in ["crash", "restart"] {
        check(&format!(
            "a resumable
             a subscribe credit 3
             p submit 1 ack_timeout_ms 60000
             < p: accepted 1
             < a: 1 attempt 1
             {how}
             b subscribe
             + 4s
             < nothing
             a returns 1
             < a: resumed kept [1] lost 0
             a ack 1
             < a: settled ok
             + 60s
             < nothing",
        ));
    }
}

#[test]
fn who_does_not_come_back_in_time_is_a_lost_worker() {
    for how in ["+ 0ms", "crash"] {
        check(&format!(
            "a resumable
             a subscribe
             p submit t
             < p: accepted t
             < a: t attempt 1
             a away
             {how}
             b subscribe
             + 4999ms
             < nothing
             + 1ms
             < b: t attempt 2 redelivered
             a returns t
             < a: anew kept [] lost 1
             a ack t
             < a: error lease_lost",
        ));
    }
}

#[test]
fn a_lease_that_did_not_reach_the_log_is_lost() {
    check(
        "a resumable
         a subscribe
         p submit t
         < p: accepted t
         < a: t attempt 1
         a release t
         < a: settled ok
         disk waits
         + 100ms
         < a: t attempt 1 redelivered
         crash
         a returns t
         < a: resumed kept [] lost 1
         a subscribe
         < a: t attempt 1 redelivered",
    );
}

#[test]
fn an_old_socket_gives_way_and_bye_ends_it() {
    check(
        "a resumable
         a subscribe
         p submit t unconfirmed
         < a: t attempt 1
         a returns t
         < a: resumed kept [t] lost 0
         a bye
         < a: closed 1000
         a returns t
         < a: anew kept [] lost 1
         a subscribe
         < a: t attempt 1 redelivered",
    );
}

#[test]
fn a_stop_reaches_who_is_away_as_the_end_of_the_grace() {
    check(
        "a resumable
         a subscribe
         p submit t
         < p: accepted t
         < a: t attempt 1
         a away
         p cancel t grace_ms 1000
         < p: ok leased
         + 1s
         a returns t
         < a: resumed kept [] lost 1
         p watch t
         < p: finished t cancelled attempts 0",
    );
}

/// What was settled to no effect came back as a lease that is kept.
#[test]
fn a_lease_on_what_is_dead_without_it_does_not_come_back() {
    check(
        "a resumable
         a subscribe
         b subscribe
         p submit t all quorum 2 max_attempts 1
         < p: accepted t
         < a: t attempt 1
         < b: t attempt 1
         b nack t
         < b: settled ok
         a ack t
         < a: settled ok
         restart
         a returns t
         < a: resumed kept [] lost 1",
    );
}

// --- Queue settings -------------------------------------------------------------------------

#[test]
fn no_more_are_with_workers_than_may_be() {
    for how in ["+ 0ms", "crash\na subscribe credit 9"] {
        let lines: Vec<&str> = how.lines().collect();
        let flag = if lines.len() > 1 { " redelivered" } else { "" };
        check(&format!(
            "op declare max_leased 2
             a subscribe credit 0
             p submit 1 memory
             p submit 2 memory
             p submit 3 memory
             < p: accepted 1
             < p: accepted 2
             < p: accepted 3
             {}
             a {}
             < a: 1 attempt 1{flag}
             < a: 2 attempt 1{flag}
             ? 3
             < 3 queued: at most 2
             a ack 1 quietly
             < a: 3 attempt 1{flag}",
            lines[0],
            if lines.len() > 1 { "subscribe credit 9" } else { "credit 9" },
        ));
    }
}

#[test]
fn a_rate_holds_and_survives_a_restart() {
    check(
        "op declare rate_per_s 10
         a subscribe credit 9
         p submit 1 unconfirmed
         p submit 2 unconfirmed
         p submit 3 unconfirmed
         < a: 1 attempt 1
         ? 2
         < 2 queued: rate
         + 99ms
         < nothing
         + 1ms
         < a: 2 attempt 1
         + 100ms
         < a: 3 attempt 1
         restart
         p submit 4 unconfirmed
         p submit 5 unconfirmed
         b subscribe credit 9
         < b: 1 attempt 1 redelivered
         + 99ms
         < nothing
         + 1ms
         < b: 2 attempt 1 redelivered",
    );
}

/// Until then the old rate's next turn was waited for.
#[test]
fn a_faster_rate_counts_at_once() {
    check(
        "op declare rate_per_s 0.01
         a subscribe credit 9
         p submit 1 unconfirmed
         p submit 2 unconfirmed
         < a: 1 attempt 1
         op declare rate_per_s 10
         + 100ms
         < a: 2 attempt 1",
    );
}

#[test]
fn a_paused_queue_delivers_nothing_until_its_time() {
    check(
        "a subscribe credit 9
         op pause for_ms 1000
         p submit 1 memory
         < p: accepted 1
         ? 1
         < 1 queued: paused
         + 500ms
         restart
         a subscribe credit 9
         + 499ms
         < nothing
         + 1ms
         < a: 1 attempt 1
         op pause
         p submit 2 unconfirmed
         + 60s
         < a: revoked 1 ack_timeout
         op unpause
         < a: 1 attempt 2 redelivered
         < a: 2 attempt 1",
    );
}

#[test]
fn a_full_queue_refuses() {
    check(
        "op declare max_tasks 2
         p submit 1
         p submit 2
         p submit 3
         < p: accepted 1
         < p: accepted 2
         < p: error queue_full
         restart
         p submit 3
         < p: error queue_full
         p cancel 1
         < p: ok cancelled
         p submit 3
         < p: accepted 3
         op declare max_tasks none max_bytes 8
         p submit 4
         < p: error queue_full",
    );
}

#[test]
fn a_queue_s_defaults_are_a_submit_s_and_survive() {
    check(
        "op declare priority 2 max_attempts 1
         restart
         a subscribe credit 0
         p submit 1 memory
         p submit 2 priority 3 memory
         < p: accepted 1
         < p: accepted 2
         a credit 1
         < a: 2 attempt 1
         a ack 2 quietly
         < a: 1 attempt 1
         a nack 1 quietly
         op redrive
         < a: 1 attempt 1 redelivered
         < op: 1",
    );
}

#[test]
fn an_early_queue_delivers_before_it_is_durable_and_confirms_after() {
    check(
        "op declare early
         a subscribe credit 9
         p listens
         disk waits
         p submit t watch
         < a: t attempt 1
         disk goes on
         < p: accepted t
         < p: event t 1 queued
         < p: event t 2 leased
         disk waits
         p submit u
         < a: u attempt 1
         crash
         a subscribe credit 9
         < a: t attempt 1 redelivered",
    );
}

#[test]
fn an_aged_queue_gives_priority_a_head_start_only() {
    check(
        "op declare aged 1000
         p submit 1 priority 4 unconfirmed
         + 1500ms
         p submit 2 priority 5 unconfirmed
         + 100ms
         p submit 3 priority 6 unconfirmed
         a subscribe credit 1
         < a: 3 attempt 1
         a ack 3 quietly
         < a: 1 attempt 1
         a ack 1 quietly
         < a: 2 attempt 1",
    );
}

// --- Who gets a task ------------------------------------------------------------------------

#[test]
fn fair_keys_take_turns_within_a_priority() {
    check(
        "p submit 1 fair_key x unconfirmed
         p submit 2 fair_key x unconfirmed
         p submit 3 fair_key y unconfirmed
         p submit 4 unconfirmed
         p submit 5 fair_key y priority 9 unconfirmed
         a subscribe credit 1
         < a: 5 attempt 1
         a ack 5 quietly
         < a: 1 attempt 1
         a ack 1 quietly
         < a: 3 attempt 1
         a ack 3 quietly
         < a: 4 attempt 1
         a ack 4 quietly
         < a: 2 attempt 1",
    );
}

#[test]
fn the_least_loaded_gets_it_and_ties_go_by_the_ring() {
    check(
        "a subscribe credit 4
         b subscribe credit 2
         p submit 1 least_loaded unconfirmed
         p submit 2 least_loaded unconfirmed
         p submit 3 least_loaded unconfirmed
         p submit 4 least_loaded unconfirmed
         < a: 1 attempt 1
         < b: 2 attempt 1
         < a: 3 attempt 1
         < b: 4 attempt 1
         b ack 2 quietly
         b ack 4 quietly
         p submit 5 least_loaded unconfirmed
         < b: 5 attempt 1",
    );
}

// --- Pulls ----------------------------------------------------------------------------------

#[test]
fn a_pull_is_answered_once_and_what_it_brought_is_settled_by_whoever_has_the_lease() {
    check(
        "x pull 2
         < nothing
         p submit 1 unconfirmed
         < x: pulled 1 attempt 1
         x over
         p submit 2 unconfirmed
         p submit 3 unconfirmed
         < nothing
         x pull 2
         < x: pulled 2 attempt 1
         < x: pulled 3 attempt 1
         x settles ack 1
         < call: settled ok
         x settles ack 1
         < call: settled already
         x settles nack 1
         < call: error lease_lost
         x pull
         x over
         < x: pulled nothing
         x settles nack 2
         < call: settled ok
         + 30s
         y pull 5
         < y: pulled 2 attempt 2 redelivered
         < y: pulled 3 attempt 2 redelivered",
    );
}

/// A pull under a recipient's name took its share.
#[test]
fn a_pull_is_never_a_recipient_of_a_task_to_all() {
    check(
        "a subscribe credit 0
         p submit t all unconfirmed
         a pull
         < nothing
         a credit 1
         < a: t attempt 1
         a over
         < a: pulled nothing",
    );
}

/// Once the first of them was answered nobody seemed to be there.
#[test]
fn of_several_pulls_of_one_worker_each_may_get_what_is_for_it() {
    check(
        "x pull
         x pull
         p submit 1 worker x unconfirmed
         p submit 2 worker x unconfirmed
         < x: pulled 1 attempt 1
         < x: pulled 2 attempt 1",
    );
}

// --- Operators ------------------------------------------------------------------------------

#[test]
fn a_purge_takes_what_waits_and_leaves_what_is_with_workers() {
    check(
        "a subscribe
         p submit 1
         p submit 2
         p submit 3 delay_ms 1000
         < p: accepted 1
         < a: 1 attempt 1
         < p: accepted 2
         < p: accepted 3
         op purge
         < op: 2
         crash
         a subscribe credit 9
         < a: 1 attempt 1 redelivered
         + 2s
         < nothing",
    );
}

#[test]
fn many_are_cancelled_wherever_they_are() {
    check(
        "a subscribe
         p submit 1 unconfirmed
         p submit 2 unconfirmed
         < a: 1 attempt 1
         op cancel-all grace_ms 100
         < a: stop 1 100
         < op: cancelled 1 stopping 1
         + 100ms
         < a: revoked 1 cancelled
         + 60s
         < nothing",
    );
}

#[test]
fn a_redrive_gives_new_attempts_and_keeps_the_id() {
    for how in ["+ 0ms", "crash"] {
        check(
            &format!(
                "a subscribe
             p submit t max_attempts 2 backoff_ms 0 memory
             < p: accepted t
             < a: t attempt 1
             a nack t quietly
             < a: t attempt 2 redelivered
             a nack t error why
             < a: settled ok
             op redrive
             < a: t attempt 1 redelivered
             < op: 1
             {how}
             b subscribe
             a cut
             b cut
             c subscribe
             < c: t attempt {} redelivered",
                "x",
            )
            .replace("attempt x", if how == "crash" { "attempt 1" } else { "attempt 2" })
            .replace("a cut\n", if how == "crash" { "+ 0ms\n" } else { "a cut\n" })
            .replace("b subscribe\n", "+ 0ms\n")
            .replace("b cut\n", "+ 0ms\n"),
        );
    }
}

#[test]
fn a_redrive_goes_at_its_rate_and_asks_for_dead_letters() {
    check(
        "a subscribe credit 9
         p submit 1 max_attempts 1 unconfirmed
         p submit 2 max_attempts 1 unconfirmed
         < a: 1 attempt 1
         < a: 2 attempt 1
         op redrive 1
         < op: error not_found
         a nack 1 quietly
         a nack 2 quietly
         op redrive rate 10
         < a: 1 attempt 1 redelivered
         < op: 2
         + 99ms
         < nothing
         + 1ms
         < a: 2 attempt 1 redelivered",
    );
}

/// A share that was dropped undelivered, or laid down, still counted as standing: the task was shown as waiting for
/// ever.
#[test]
fn a_task_to_all_that_is_redriven_is_shown_as_it_stands() {
    check(
        "a subscribe
         b subscribe
         c subscribe credit 0
         p submit t all quorum 3 max_attempts 1 backoff_ms 0 unconfirmed
         < a: t attempt 1
         < b: t attempt 1
         a nack t quietly
         b ack t quietly
         op redrive
         < a: t attempt 1 redelivered
         < b: t attempt 1 redelivered
         < op: 1
         ? t
         < t leased: 1 busy
         a nack t quietly
         ? t
         < t dead:",
    );
}

#[test]
fn a_dead_letter_that_is_deleted_is_gone() {
    for how in ["restart", "crash"] {
        check(&format!(
            "a subscribe
             p submit t max_attempts 1 unconfirmed
             < a: t attempt 1
             a nack t quietly
             op delete t
             < op: 1
             {how}
             p cancel t
             < p: error not_found",
        ));
    }
}

#[test]
fn a_worker_is_drained_or_removed_by_name() {
    check(
        "a subscribe credit 9
         p submit 1 unconfirmed
         < a: 1 attempt 1
         op drain-worker a
         < a: going_away
         p submit 2 unconfirmed
         a ack 1
         < a: settled ok
         op drain-worker nobody
         < op: error not_found
         b subscribe
         < b: 2 attempt 1
         c subscribe
         op remove-worker b
         < b: revoked 2 removed
         < c: 2 attempt 2 redelivered
         < b: closed 4010",
    );
}

// --- Rooms and events -----------------------------------------------------------------------

#[test]
fn what_is_said_in_a_room_is_heard_by_those_who_are_in_it() {
    check(
        "a join r
         b join r
         a publish r
         < a: a says in r as number 1
         < b: a says in r as number 1
         a publish r exclude_self
         < b: a says in r as number 2
         b leave r
         c publish r
         < a: c says in r as number 3
         a cut
         c publish r
         < nothing",
    );
}

#[test]
fn who_comes_back_hears_what_it_missed() {
    check(
        "p listens
         p submit t watch unconfirmed
         < p: event t 1 queued
         p cut
         a subscribe
         < a: t attempt 1
         p watch t from 1
         < p: event t 2 leased
         p watch t from 2
         a ack t quietly
         < p: finished t done attempts 1",
    );
}
