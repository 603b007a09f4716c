//! On paused time, with an authority that does as it is told.

use std::collections::VecDeque;

use meshca_core::ErrorKind;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Gives tokens and counts what it is asked for.
#[derive(Default)]
struct Fake {
    state: Mutex<FakeState>,
}

#[derive(Default)]
struct FakeState {
    /// The next tokens; afterwards numbered ones.
    given: Option<String>,
    logins: usize,
    renewals: usize,
    look_ups: usize,
    reloads: usize,
    /// Tokens that are not known any more.
    dead: Vec<String>,
    ttl: Option<Duration>,
    /// What renewals give, in order; then the whole `ttl`.
    renewed: VecDeque<Result<Option<Duration>>>,
    renewable: bool,
    down: bool,
    no_logins: bool,
    /// Tokens may not look themselves up.
    untold: bool,
}

impl Fake {
    fn new(ttl: Option<Duration>, renewable: bool) -> Arc<Self> {
        let fake = Self::default();
        fake.set(|state| {
            state.ttl = ttl;
            state.renewable = renewable;
        });
        Arc::new(fake)
    }

    fn set<T>(&self, change: impl FnOnce(&mut FakeState) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    fn sessions(self: &Arc<Self>) -> Sessions {
        Sessions::start(self.clone(), "a fake".to_owned())
    }
}

fn down() -> Error {
    Error::new(ErrorKind::Unavailable, "down")
}

#[async_trait]
impl Authority for Fake {
    async fn log_in(&self) -> Result<Grant> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.set(|state| {
            state.logins += 1;
            if state.down || state.no_logins {
                return Err(down());
            }
            let (token, lease) = match &state.given {
                Some(given) => (given.clone(), None),
                None => {
                    let lease = Lease {
                        ttl: state.ttl,
                        renewable: state.renewable,
                    };
                    (format!("token-{}", state.logins), Some(lease))
                }
            };
            Ok(Grant {
                token: Token::new(token.as_bytes())?,
                lease,
            })
        })
    }

    async fn renew(&self, token: &Token) -> Result<Option<Lease>> {
        self.set(|state| {
            state.renewals += 1;
            if state.down {
                return Err(down());
            }
            if state.dead.contains(&token.expose().to_owned()) {
                return Ok(None);
            }
            let renewable = state.renewable;
            let ttl = state.renewed.pop_front().unwrap_or(Ok(state.ttl))?;
            Ok(Some(Lease { ttl, renewable }))
        })
    }

    async fn look_up(&self, token: &Token) -> Result<Known> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.set(|state| {
            state.look_ups += 1;
            if state.down {
                return Err(down());
            }
            if state.untold {
                return Ok(Known::Untold);
            }
            let alive = !state.dead.contains(&token.expose().to_owned());
            let lease = Lease {
                ttl: state.ttl,
                renewable: state.renewable,
            };
            Ok(if alive {
                Known::Alive(lease)
            } else {
                Known::Dead
            })
        })
    }

    async fn reload(&self, token: Option<&Token>) -> Result<bool> {
        self.set(|state| {
            state.reloads += 1;
            let given = state.given.as_deref();
            Ok(given.is_some() && token.is_some_and(|token| Some(token.expose()) != given))
        })
    }

    fn only_given(&self) -> bool {
        self.set(|state| state.given.is_some())
    }

    fn dead(&self) -> Error {
        Error::new(ErrorKind::Unauthenticated, "put a new token there")
    }
}

async fn wait(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_logs_in_before_the_first_request() {
    let fake = Fake::new(Some(HOUR), true);
    let sessions = fake.sessions();
    wait(HOUR).await;
    assert_eq!(fake.set(|state| state.logins), 0);
    assert_eq!(sessions.token().await.unwrap().expose(), "token-1");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_requests_log_in_once() {
    let fake = Fake::new(Some(HOUR), true);
    let sessions = Arc::new(fake.sessions());
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let sessions = Arc::clone(&sessions);
            tokio::spawn(async move { sessions.token().await.unwrap() })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().expose(), "token-1");
    }
    assert_eq!(fake.set(|state| state.logins), 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewable_token_is_renewed_at_two_thirds_for_ever() {
    let fake = Fake::new(Some(HOUR), true);
    let sessions = fake.sessions();
    let token = sessions.token().await.unwrap();
    wait(HOUR.mul_f64(RENEW_AFTER.0 - 0.01)).await;
    assert_eq!(fake.set(|state| state.renewals), 0);
    wait(HOUR.mul_f64(RENEW_AFTER.1 - RENEW_AFTER.0 + 0.02)).await;
    assert_eq!(fake.set(|state| state.renewals), 1);
    wait(HOUR * 24 * 7).await;
    assert_eq!(sessions.token().await.unwrap(), token);
    let (logins, renewals) = fake.set(|state| (state.logins, state.renewals));
    assert_eq!(logins, 1);
    let week = 24.0 * 7.0;
    let (fewest, most) = (week / RENEW_AFTER.1, week / RENEW_AFTER.0);
    assert!(
        (fewest..most + 2.0).contains(&(renewals as f64)),
        "{renewals}"
    );
}

#[tokio::test(start_paused = true)]
async fn replicas_do_not_renew_at_the_same_moment() {
    let mut due = Vec::new();
    for _ in 0..50 {
        let current = Current::new(
            Token::new(b"t").unwrap(),
            Some(Lease {
                ttl: Some(HOUR),
                renewable: true,
            }),
        );
        due.push(
            current
                .due
                .unwrap()
                .duration_since(Instant::now())
                .as_secs(),
        );
    }
    due.sort_unstable();
    due.dedup();
    assert!(due.len() > 25, "{due:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_renewed_is_replaced_before_it_ends() {
    let fake = Fake::new(Some(HOUR), false);
    let sessions = fake.sessions();
    let first = sessions.token().await.unwrap();
    for _ in 0..100 {
        wait(HOUR / 10).await;
        let current = fake.set(|state| state.logins);
        assert_eq!(
            sessions.token().await.unwrap().expose(),
            format!("token-{current}")
        );
    }
    assert_ne!(sessions.token().await.unwrap(), first);
    assert_eq!(fake.set(|state| state.renewals), 0);
    let logins = fake.set(|state| state.logins);
    assert!((13..=17).contains(&logins), "{logins}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_shrinks_is_followed_by_a_login() {
    let fake = Fake::new(Some(HOUR), true);
    fake.set(|state| state.renewed.extend([Ok(Some(HOUR)), Ok(Some(HOUR / 10))]));
    let sessions = fake.sessions();
    sessions.token().await.unwrap();
    wait(HOUR * 2).await;
    // The maximum is near: a login instead of a renewal, and before the token is dead.
    assert_eq!(fake.set(|state| state.logins), 2);
    assert_eq!(sessions.token().await.unwrap().expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_take_a_token_that_is_still_good() {
    let fake = Fake::new(Some(HOUR), true);
    let sessions = fake.sessions();
    let token = sessions.token().await.unwrap();
    fake.set(|state| state.down = true);
    wait(HOUR.mul_f64(0.9)).await;
    assert_eq!(sessions.token().await.unwrap(), token);
    let tries = fake.set(|state| state.renewals);
    assert!((3..200).contains(&tries), "{tries}");
    fake.set(|state| state.down = false);
    wait(HOUR).await;
    assert_eq!(
        sessions.token().await.unwrap(),
        token,
        "it was renewed in time"
    );
    assert_eq!(fake.set(|state| state.logins), 1);
}

#[tokio::test(start_paused = true)]
async fn past_its_end_there_is_a_login() {
    let fake = Fake::new(Some(HOUR), true);
    let sessions = fake.sessions();
    sessions.token().await.unwrap();
    fake.set(|state| state.down = true);
    wait(HOUR * 2).await;
    assert_eq!(
        sessions.token().await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    fake.set(|state| {
        state.down = false;
        state.dead.push("token-1".to_owned());
    });
    wait(HOUR).await;
    assert_ne!(sessions.token().await.unwrap().expose(), "token-1");
}

#[tokio::test(start_paused = true)]
async fn failed_logins_are_spaced_and_their_error_is_shared() {
    let fake = Fake::new(Some(HOUR), true);
    fake.set(|state| state.down = true);
    let sessions = fake.sessions();
    for _ in 0..10_000 {
        let error = sessions.token().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        wait(Duration::from_millis(100)).await;
    }
    // A thousand seconds: after the first few, one every 15 to 30.
    let logins = fake.set(|state| state.logins);
    assert!((30..=75).contains(&logins), "{logins}");
    let error = sessions.token().await.unwrap_err();
    assert!(
        matches!(error.retry(), Retry::After(wait) if wait <= BACKOFF.1),
        "{error:?}"
    );
    fake.set(|state| state.down = false);
    wait(BACKOFF.1).await;
    sessions.token().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_is_replaced_once_for_all_who_were_refused() {
    let fake = Fake::new(Some(HOUR), true);
    let sessions = Arc::new(fake.sessions());
    let first = sessions.token().await.unwrap();
    fake.set(|state| state.dead.push("token-1".to_owned()));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (sessions, first) = (Arc::clone(&sessions), Arc::clone(&first));
            tokio::spawn(async move { sessions.refused(&first).await.unwrap() })
        })
        .collect();
    for task in tasks {
        let Verdict::Replaced(token) = task.await.unwrap() else {
            panic!("it is dead")
        };
        assert_eq!(token.expose(), "token-2");
    }
    // One who comes late with the old token gets the new one without a question.
    assert!(matches!(
        sessions.refused(&first).await.unwrap(),
        Verdict::Replaced(_)
    ));
    assert_eq!(fake.set(|state| (state.logins, state.look_ups)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_live_token_means_that_the_policy_refuses() {
    let fake = Fake::new(Some(HOUR), true);
    let sessions = fake.sessions();
    let token = sessions.token().await.unwrap();
    assert!(matches!(
        sessions.refused(&token).await.unwrap(),
        Verdict::Refused
    ));
    assert_eq!(fake.set(|state| state.logins), 1);
    fake.set(|state| state.down = true);
    assert_eq!(
        sessions.refused(&token).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        sessions.token().await.unwrap(),
        token,
        "it may still be good"
    );
}

#[tokio::test(start_paused = true)]
async fn a_given_token_is_kept_alive_before_anybody_asks() {
    let fake = Fake::new(Some(HOUR), true);
    fake.set(|state| state.given = Some("given".to_owned()));
    let sessions = fake.sessions();
    wait(HOUR * 10).await;
    let (look_ups, renewals) = fake.set(|state| (state.look_ups, state.renewals));
    assert_eq!(look_ups, 1);
    assert!(renewals >= 13, "{renewals}");
    assert_eq!(sessions.token().await.unwrap().expose(), "given");
}

#[tokio::test(start_paused = true)]
async fn a_given_token_that_changes_is_picked_up_while_the_old_one_still_works() {
    let fake = Fake::new(None, false);
    fake.set(|state| state.given = Some("old".to_owned()));
    let sessions = fake.sessions();
    assert_eq!(sessions.token().await.unwrap().expose(), "old");
    wait(RELOAD_INTERVAL * 10).await;
    fake.set(|state| state.given = Some("new".to_owned()));
    wait(RELOAD_INTERVAL + Duration::from_secs(1)).await;
    assert_eq!(sessions.token().await.unwrap().expose(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_given_token_that_is_dead_is_no_reason_to_ask_again_and_again() {
    let fake = Fake::new(None, false);
    fake.set(|state| {
        state.given = Some("old".to_owned());
        state.dead.push("old".to_owned());
    });
    let sessions = fake.sessions();
    let token = sessions.token().await.unwrap();
    for _ in 0..100 {
        let error = match sessions.token().await {
            Ok(_) => sessions.refused(&token).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert_eq!(error.message(), "put a new token there");
    }
    assert!(fake.set(|state| state.look_ups) <= 3);
    fake.set(|state| state.given = Some("new".to_owned()));
    wait(RELOAD_INTERVAL + BACKOFF.1).await;
    assert_eq!(sessions.token().await.unwrap().expose(), "new");
}

#[tokio::test(start_paused = true)]
async fn the_keeper_ends_with_the_sessions() {
    let fake = Fake::new(Some(HOUR), true);
    let sessions = fake.sessions();
    sessions.token().await.unwrap();
    drop(sessions);
    tokio::task::yield_now().await;
    assert_eq!(Arc::strong_count(&fake), 1);
    wait(HOUR * 10).await;
    assert_eq!(fake.set(|state| (state.renewals, state.reloads)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_may_not_be_looked_up_is_no_reason_to_log_in_all_the_time() {
    let fake = Fake::new(None, false);
    fake.set(|state| state.untold = true);
    let sessions = fake.sessions();
    for _ in 0..1000 {
        let token = sessions.token().await.unwrap();
        sessions.refused(&token).await.unwrap();
        wait(Duration::from_millis(100)).await;
    }
    // A hundred seconds: not more than one in thirty.
    let logins = fake.set(|state| state.logins);
    assert!((2..=5).contains(&logins), "{logins}");
}

/// OpenBao does not say that a token is dead.
#[tokio::test(start_paused = true)]
async fn a_token_that_may_be_dead_is_replaced_at_once_and_once() {
    let fake = Fake::new(Some(HOUR), true);
    fake.set(|state| state.untold = true);
    let sessions = Arc::new(fake.sessions());
    let first = sessions.token().await.unwrap();
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (sessions, first) = (Arc::clone(&sessions), Arc::clone(&first));
            tokio::spawn(async move { sessions.refused(&first).await.unwrap() })
        })
        .collect();
    for task in tasks {
        let Verdict::Replaced(token) = task.await.unwrap() else {
            panic!("another one can be had")
        };
        assert_eq!(token.expose(), "token-2");
    }
    assert_eq!(fake.set(|state| state.logins), 2);

    // The next one may be dead as well. That is found out, though not at once.
    let second = sessions.token().await.unwrap();
    let Verdict::Unsettled(pause) = sessions.refused(&second).await.unwrap() else {
        panic!("the last login was a moment ago")
    };
    assert!(pause <= BACKOFF.1, "{pause:?}");
    assert_eq!(sessions.token().await.unwrap(), second, "it may be good");
    wait(pause).await;
    let Verdict::Replaced(third) = sessions.refused(&second).await.unwrap() else {
        panic!("another one can be had")
    };
    assert_eq!(third.expose(), "token-3");
}

#[tokio::test(start_paused = true)]
async fn a_given_token_that_may_be_dead_is_kept_until_there_is_another() {
    let fake = Fake::new(None, false);
    fake.set(|state| {
        state.given = Some("one".to_owned());
        state.untold = true;
    });
    let sessions = fake.sessions();
    let token = sessions.token().await.unwrap();
    for _ in 0..10 {
        assert!(matches!(
            sessions.refused(&token).await.unwrap(),
            Verdict::Unsettled(pause) if pause <= BACKOFF.1
        ));
        assert!(Arc::ptr_eq(&sessions.token().await.unwrap(), &token));
    }
    // Read again because of a refusal, and not only when it is time to.
    wait(BACKOFF.1 + Duration::from_secs(1)).await;
    fake.set(|state| state.given = Some("two".to_owned()));
    let Verdict::Replaced(other) = sessions.refused(&token).await.unwrap() else {
        panic!("there is another one")
    };
    assert_eq!(other.expose(), "two");
}

#[tokio::test(start_paused = true)]
async fn a_login_that_fails_leaves_a_token_that_may_be_good() {
    let fake = Fake::new(Some(HOUR), true);
    fake.set(|state| state.untold = true);
    let sessions = fake.sessions();
    let token = sessions.token().await.unwrap();
    fake.set(|state| state.no_logins = true);
    let error = sessions.refused(&token).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(Arc::ptr_eq(&sessions.token().await.unwrap(), &token));
}

#[tokio::test(start_paused = true)]
async fn callers_that_give_up_leave_no_old_verdict_behind() {
    let fake = Fake::new(Some(HOUR), true);
    let sessions = fake.sessions();
    let given_up = timeout(Duration::from_millis(5), sessions.token()).await;
    given_up.unwrap_err();
    wait(Duration::from_secs(900)).await;
    let token = sessions.token().await.unwrap();
    timeout(Duration::from_millis(5), sessions.refused(&token))
        .await
        .unwrap_err();
    wait(Duration::from_secs(60)).await;
    fake.set(|state| state.dead.push("token-1".to_owned()));
    let Verdict::Replaced(newer) = sessions.refused(&token).await.unwrap() else {
        panic!("it is dead by now")
    };
    assert_eq!(newer.expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn a_given_token_that_was_dead_and_lives_again_is_used() {
    let fake = Fake::new(None, false);
    fake.set(|state| {
        state.given = Some("one".to_owned());
        state.dead.push("one".to_owned());
    });
    let sessions = fake.sessions();
    let token = sessions.token().await.unwrap();
    sessions.refused(&token).await.unwrap_err();
    // A proxy said so, for a moment.
    fake.set(|state| state.dead.clear());
    wait(BACKOFF.1).await;
    assert_eq!(sessions.token().await.unwrap().expose(), "one");
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_any_length_is_survived() {
    for ttl in [Duration::MAX, Duration::from_secs(u64::MAX), Duration::ZERO] {
        let fake = Fake::new(Some(ttl), true);
        let mut sessions = fake.sessions();
        let _ = sessions.token().await;
        wait(HOUR).await;
        let _ = sessions.token().await;
        assert!(sessions._keeper.try_join_next().is_none(), "{ttl:?}");
    }
}
