//! Promises of PROTOCOL.md one at a time, each told in a few lines.

use crate::script::check;

#[test]
fn a_lost_worker_s_task_goes_on_at_once_and_a_second_loss_backs_off() {
    check(
        "a subscribe
         p submit t backoff_ms 1000
         < p: accepted t
         < a: t attempt 1
         b subscribe
         a cut
         < b: t attempt 2 redelivered
         b cut
         c subscribe
         + 1799ms
         < nothing
         + 402ms
         < c: t attempt 3 redelivered",
    );
}

#[test]
fn nacks_use_up_the_attempts_and_the_reason_stays() {
    check(
        "p submit t max_attempts 2 backoff_ms 100 watch
         < p: accepted t
         a subscribe
         < a: t attempt 1
         a nack t error disk
         < a: settled ok
         + 89ms
         < nothing
         + 22ms
         < a: t attempt 2 redelivered
         a nack t error worse
         < p: finished t dead attempts 2 error worse
         < a: settled ok
         crash
         p watch t
         < p: finished t dead attempts 2 error worse",
    );
}

#[test]
fn a_nack_may_say_when_or_never_again() {
    check(
        "p submit t watch
         p submit u watch
         < p: accepted t
         < p: accepted u
         a subscribe credit 2
         < a: t attempt 1
         < a: u attempt 1
         a nack t delay_ms 5 quietly
         + 4ms
         < nothing
         + 1ms
         < a: t attempt 2 redelivered
         a nack u dead error no
         < p: finished u dead attempts 1 error no
         < a: settled ok",
    );
}

#[test]
fn an_ack_that_arrives_before_its_timeout_wins_over_it_after_a_stall() {
    check(
        "a subscribe
         p submit t ack_timeout_ms 100 watch
         < p: accepted t
         < a: t attempt 1
         stall
         + 99ms
         a ack t
         + 30s
         go on
         < p: finished t done attempts 1
         < a: settled ok",
    );
}

#[test]
fn an_ack_at_the_instant_of_its_timeout_counts_or_is_lost_and_never_both() {
    check(
        "a subscribe
         p submit t ack_timeout_ms 100 watch
         < p: accepted t
         < a: t attempt 1
         stall
         + 100ms
         a ack t
         go on
         < p: finished t done attempts 1
         < a: settled ok",
    );
    check(
        "a subscribe
         p submit t ack_timeout_ms 100 watch
         < p: accepted t
         < a: t attempt 1
         a freeze
         + 100ms
         a ack t
         < a: revoked t ack_timeout
         < a: error lease_lost
         b subscribe
         < b: t attempt 2 redelivered",
    );
}

#[test]
fn a_task_to_all_gathers_what_its_recipients_say() {
    check(
        "a subscribe
         b subscribe
         p submit t all watch max_attempts 1
         < p: accepted t
         < a: t attempt 1
         < b: t attempt 1
         a ack t
         < a: settled ok
         b nack t error no
         < p: finished t dead delivered 2 acked 1 failed 1, b dead no, a done
         < b: settled ok
         p submit u all quorum 2 watch
         < p: accepted u
         < a: u attempt 1
         < b: u attempt 1
         b ack u
         < b: settled ok
         a ack u
         < p: finished u done delivered 2 acked 2 failed 0, a done, b done
         < a: settled ok",
    );
}

#[test]
fn once_any_has_answered_the_others_leases_are_of_no_effect() {
    check(
        "a subscribe
         b subscribe
         p submit t all any watch
         < p: accepted t
         < a: t attempt 1
         < b: t attempt 1
         a ack t quietly
         < p: finished t done delivered 2 acked 1 failed 0, b leased, a done
         b nack t
         < b: settled ok
         b cut
         b subscribe
         + 60s
         < nothing",
    );
}

#[test]
fn a_recipient_that_is_absent_for_30_s_has_failed() {
    check(
        "a subscribe
         b subscribe credit 0
         p submit t all watch
         < p: accepted t
         < a: t attempt 1
         a ack t quietly
         + 10s
         b cut
         + 29s
         < nothing
         + 1s
         < p: finished t dead delivered 1 acked 1 failed 1, b dead absent, a done",
    );
}

#[test]
fn a_group_takes_its_own_turns() {
    check(
        "a is in g
         b is in g
         a subscribe credit 9
         b subscribe credit 9
         c subscribe credit 9
         p submit 1 group g memory
         p submit 2 group g memory
         p submit 3 group g memory
         p submit 4 memory
         < p: accepted 1
         < a: 1 attempt 1
         < p: accepted 2
         < b: 2 attempt 1
         < p: accepted 3
         < a: 3 attempt 1
         < p: accepted 4
         < a: 4 attempt 1",
    );
}

#[test]
fn turns_are_exact_and_one_without_credit_loses_its_own() {
    check(
        "a subscribe credit 9
         b subscribe credit 1
         c subscribe credit 9
         p submit 1 unconfirmed
         p submit 2 unconfirmed
         p submit 3 unconfirmed
         p submit 4 unconfirmed
         p submit 5 unconfirmed
         < a: 1 attempt 1
         < b: 2 attempt 1
         < c: 3 attempt 1
         < a: 4 attempt 1
         < c: 5 attempt 1
         p submit x worker a unconfirmed
         < a: x attempt 1
         p submit 6 unconfirmed
         < a: 6 attempt 1",
    );
}

#[test]
fn a_released_task_is_not_offered_to_its_releaser_for_100_ms() {
    check(
        "a subscribe credit 2
         p submit t unconfirmed
         < a: t attempt 1
         a release t quietly
         + 99ms
         < nothing
         + 1ms
         < a: t attempt 1 redelivered
         a release t quietly
         b subscribe
         < b: t attempt 1 redelivered",
    );
}

#[test]
fn a_frozen_worker_gets_nothing_until_it_is_heard() {
    check(
        "a subscribe credit 5
         p submit t ack_timeout_ms 100 unconfirmed
         < a: t attempt 1
         a freeze
         + 100ms
         < a: revoked t ack_timeout
         p submit u unconfirmed
         + 10s
         < nothing
         a thaw
         < a: t attempt 2 redelivered
         < a: u attempt 1",
    );
}

#[test]
fn a_lease_of_before_a_restart_is_lost_and_what_may_have_been_delivered_is_flagged() {
    for how in ["crash", "restart"] {
        check(&format!(
            "a subscribe
             p submit t
             < p: accepted t
             < a: t attempt 1
             {how}
             a ack t
             < a: error lease_lost
             a subscribe
             < a: t attempt 1 redelivered",
        ));
    }
}

#[test]
fn an_orderly_restart_flags_only_what_was_delivered() {
    check(
        "p submit t
         < p: accepted t
         restart
         a subscribe
         < a: t attempt 1
         restart
         restart
         a subscribe
         < a: t attempt 1 redelivered",
    );
    check(
        "p submit t
         < p: accepted t
         crash
         a subscribe
         < a: t attempt 1 redelivered",
    );
}

#[test]
fn attempts_and_back_off_go_on_after_a_restart() {
    check(
        "a subscribe
         p submit t max_attempts 3 backoff_ms 1000 unconfirmed
         < a: t attempt 1
         a nack t
         < a: settled ok
         crash
         a subscribe
         + 899ms
         < nothing
         + 202ms
         < a: t attempt 2 redelivered
         a nack t delay_ms 0 quietly
         < a: t attempt 3 redelivered",
    );
}

#[test]
fn a_result_reaches_who_watches_and_who_waits() {
    check(
        "p submit t watch
         < p: accepted t
         call submit u watch
         < call: accepted u
         a subscribe credit 2
         < a: t attempt 1
         < a: u attempt 1
         a ack t result 42
         < p: finished t done attempts 1 result 42
         < a: settled ok
         a ack u result 43 quietly
         < call: finished u done attempts 1 result 43
         q watch t
         < q: finished t done attempts 1 result 42",
    );
}

#[test]
fn a_task_expires_with_a_worker_or_without_one() {
    check(
        "p submit t ttl_ms 50 watch
         < p: accepted t
         + 50ms
         < p: finished t expired attempts 0 error outlived its ttl_ms
         a subscribe
         p submit u ttl_ms 50 unconfirmed
         < a: u attempt 1
         + 50ms
         < a: revoked u expired
         a ack u
         < a: error lease_lost",
    );
}

/// The end of a task's use does not undo what a recipient has done already.
#[test]
fn a_task_to_all_that_expires_keeps_what_is_done() {
    check(
        "a subscribe
         b subscribe credit 0
         p submit t all ttl_ms 50 watch
         < p: accepted t
         < a: t attempt 1
         a ack t quietly
         + 50ms
         < p: finished t expired delivered 1 acked 1 failed 1, b expired, a done",
    );
}

/// Recipients that never were enough used to be worked for nothing, and after a restart they were not.
#[test]
fn a_quorum_that_cannot_be_reached_is_dead_at_once() {
    check(
        "a subscribe
         p submit t all quorum 2 watch
         < p: accepted t
         < p: finished t dead delivered 0 acked 0 failed 0, a cancelled
         p submit u all quorum 1 watch
         < p: accepted u
         < a: u attempt 1",
    );
}

/// Once the deliveries before a crash were not counted: `delivered 0 acked 1`.
#[test]
fn a_task_to_all_counts_its_deliveries_across_a_crash() {
    check(
        "a subscribe
         p submit t all
         < p: accepted t
         < a: t attempt 1
         crash
         p watch t
         a subscribe
         < a: t attempt 1 redelivered
         a ack t quietly
         < p: finished t done delivered 1 acked 1 failed 0, a done",
    );
}

#[test]
fn priority_goes_before_order_and_order_before_all_else() {
    check(
        "p submit 1 unconfirmed
         p submit 2 unconfirmed
         p submit 3 priority 9 unconfirmed
         p submit 4 delay_ms 10 unconfirmed
         p submit 5 unconfirmed
         + 10ms
         a subscribe credit 1
         < a: 3 attempt 1
         a ack 3 quietly
         < a: 1 attempt 1
         a nack 1 delay_ms 0 quietly
         < a: 1 attempt 2 redelivered
         a ack 1 quietly
         < a: 2 attempt 1
         a ack 2 quietly
         < a: 4 attempt 1
         a ack 4 quietly
         < a: 5 attempt 1",
    );
}

#[test]
fn a_worker_that_has_not_said_start_returns_its_task_free() {
    check(
        "a subscribe explicit_start
         p submit t unconfirmed
         < a: t attempt 1
         a cut
         a subscribe explicit_start
         < a: t attempt 1 redelivered
         a start t
         a cut
         a subscribe
         < a: t attempt 2 redelivered",
    );
}

#[test]
fn after_100_free_returns_in_a_row_one_is_charged() {
    let mut script = String::from("p submit t backoff_ms 0 unconfirmed\n");
    for round in 0..102 {
        let flag = if round == 0 { "" } else { " redelivered" };
        let attempt = if round == 101 { 2 } else { 1 };
        script += &format!("a subscribe\n< a: t attempt {attempt}{flag}\na bye\n< a: closed 1000\n");
    }
    check(&script);
}

/// `bye` once closed the socket at once, and what waited for the disk was never answered.
#[test]
fn a_session_that_says_bye_hears_first_what_it_asked_before() {
    check(
        "a subscribe
         p submit t
         < p: accepted t
         < a: t attempt 1
         disk waits
         p submit u
         p bye
         a ack t
         a bye
         < nothing
         disk goes on
         < p: accepted u
         < p: closed 1000
         < a: settled ok
         < a: closed 1000",
    );
}

#[test]
fn mode_auto_settles_when_the_delivery_is_written() {
    check(
        "p submit t watch
         p submit u watch
         < p: accepted t
         < p: accepted u
         a subscribe auto credit 1
         < a: t attempt 1
         < a: u attempt 1
         < p: finished t done attempts 1
         < p: finished u done attempts 1",
    );
}

#[test]
fn a_settle_said_twice_is_already_settled_and_another_verb_is_not() {
    check(
        "a subscribe
         p submit t unconfirmed
         < a: t attempt 1
         a ack t
         < a: settled ok
         a ack t
         < a: settled already
         a nack t
         < a: error lease_lost
         b ack t
         < b: error lease_lost",
    );
}

#[test]
fn a_run_limit_holds_whatever_is_extended() {
    check(
        "a subscribe
         p submit t timeout_ms 200 ack_timeout_ms 100 unconfirmed
         < a: t attempt 1
         + 90ms
         a extend t ack_timeout_ms 1000
         + 109ms
         < nothing
         + 1ms
         < a: revoked t run_limit
         < a: t attempt 2 redelivered",
    );
}

#[test]
fn nothing_follows_the_ok_of_credit_unsubscribe_and_drain() {
    for how in ["credit 0", "unsubscribe", "drain"] {
        check(&format!(
            "a subscribe credit 5
             p submit 1 unconfirmed
             < a: 1 attempt 1
             a {how}
             p submit 2 unconfirmed
             a ack 1 quietly
             + 10s
             < nothing
             b subscribe
             < b: 2 attempt 1",
        ));
    }
}

/// What became durable only during an orderly stop was once handed out then, and not flagged afterwards.
#[test]
fn a_broker_that_stops_hands_out_nothing_more() {
    check(
        "a subscribe
         disk waits
         p submit t
         < nothing
         restart
         < p: accepted t
         a subscribe
         < a: t attempt 1",
    );
}

#[test]
fn a_draining_broker_serves_settles_and_refuses_submits() {
    check(
        "a subscribe credit 2
         p submit t watch
         < p: accepted t
         < a: t attempt 1
         drain
         < a: going_away
         < p: going_away
         p submit u
         < p: error draining
         a ack t
         < p: finished t done attempts 1
         < a: settled ok",
    );
}

#[test]
fn nothing_is_said_or_handed_out_before_it_is_durable() {
    check(
        "a subscribe
         disk waits
         p submit t watch
         p submit u memory
         < p: accepted u
         disk goes on
         < p: accepted t
         < a: t attempt 1
         disk waits
         a ack t
         < a: u attempt 1
         disk goes on
         < p: finished t done attempts 1
         < a: settled ok",
    );
}

/// What was not synced is gone after a power cut, and nobody was told otherwise.
#[test]
fn a_crash_before_the_sync_takes_what_was_not_confirmed() {
    check(
        "a subscribe
         p submit t
         < p: accepted t
         < a: t attempt 1
         disk waits
         a ack t
         p submit u
         < nothing
         crash
         a subscribe credit 5
         < a: t attempt 1 redelivered",
    );
}

/// Such a task was handed out once more before its end was noticed.
#[test]
fn a_task_whose_use_ended_while_the_broker_was_away_is_not_handed_out() {
    check(
        "p submit t ttl_ms 50
         < p: accepted t
         crash for 1s
         p watch t
         < p: finished t expired attempts 0 error outlived its ttl_ms
         a subscribe
         + 1s
         < nothing",
    );
    check(
        "a subscribe
         disk waits
         p submit t ttl_ms 50 watch
         + 60ms
         disk goes on
         < p: accepted t
         < p: finished t expired attempts 0 error outlived its ttl_ms",
    );
}

/// A lease that was extended far and then started ran on to the end of the extension.
#[test]
fn start_begins_the_ack_timeout_anew_even_if_that_is_sooner() {
    check(
        "a subscribe
         p submit t ack_timeout_ms 100 unconfirmed
         < a: t attempt 1
         a extend t ack_timeout_ms 3000
         + 200ms
         a start t
         + 99ms
         < nothing
         b subscribe
         + 1ms
         < a: revoked t ack_timeout
         < b: t attempt 2 redelivered",
    );
}

/// A lease was measured by the clock, and not by how far the broker had read: an extended one was lost to a stall.
#[test]
fn an_extended_lease_outlives_a_stall_too_if_its_ack_came_in_time() {
    check(
        "a subscribe
         p submit t ack_timeout_ms 100 unconfirmed
         < a: t attempt 1
         a extend t ack_timeout_ms 3000
         stall
         + 200ms
         p submit u unconfirmed
         + 1s
         a ack t
         + 10s
         go on slowly
         < a: u attempt 1
         < a: settled ok",
    );
}
