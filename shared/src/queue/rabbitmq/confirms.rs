//! Decides which publishes are durable, by their confirms and returns. Pure.
//!
//! lapin answers an acknowledgement of several publishes confirm by confirm, in no order, and attaches
//! the first waiting return to the first confirm that it answers. Both may happen in several parts. So a
//! return shows nothing about the confirm that carries it, only about its session: from the first return
//! on, no acknowledgement of the session counts. A confirm that carries a return is answered before the
//! confirm of the returned message, so no acknowledgement came too early.
use lapin::Confirmation;

use crate::queue::PublishError;

/// Result of one publish, with its number.
pub(super) type PublishResult = (u64, lapin::Result<Confirmation>);

/// Confirms of one session.
#[derive(Debug, Default)]
pub(super) struct SessionConfirms {
    has_returns: bool,
}

/// Answers derived from results that came together.
#[derive(Debug, PartialEq)]
pub(super) struct ConfirmAnswers {
    /// Answers by number; a publish without an answer has to be made again.
    pub answers: Vec<(u64, Result<(), PublishError>)>,
    /// Reason why the session cannot go on.
    pub failure: Option<String>,
}

impl SessionConfirms {
    pub fn resolve(&mut self, results: Vec<PublishResult>) -> ConfirmAnswers {
        self.has_returns |= results.iter().any(|(_, outcome)| carries_return(outcome));
        let mut failure = self.has_returns.then(|| "no queue takes the messages".to_owned());
        let mut answers = Vec::with_capacity(results.len());
        for (number, outcome) in results {
            match outcome {
                Ok(Confirmation::Ack(_)) if self.has_returns => {}
                Ok(Confirmation::Ack(_)) => answers.push((number, Ok(()))),
                Ok(Confirmation::Nack(_)) => answers.push((number, Err(PublishError::Full))),
                Ok(Confirmation::NotRequested) => failure = Some("the channel has no confirms".into()),
                Err(error) => failure = failure.or(Some(error.to_string())),
            }
        }
        ConfirmAnswers { answers, failure }
    }
}

fn carries_return(outcome: &lapin::Result<Confirmation>) -> bool {
    matches!(outcome, Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))))
}

#[cfg(test)]
mod tests {
    use lapin::message::{BasicReturnMessage, Delivery};

    use super::*;

    fn returned() -> BasicReturnMessage {
        let delivery = Delivery::mock(0, "".into(), "".into(), false, Vec::new());
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    #[test]
    fn after_a_return_no_acknowledgement_of_the_session_counts_in_whatever_parts_they_come() {
        let mut confirms = SessionConfirms::default();
        let before = confirms.resolve(vec![(1, Ok(Confirmation::Ack(None)))]);
        assert_eq!(before, ConfirmAnswers { answers: vec![(1, Ok(()))], failure: None });
        // Two returns, of 2 and 3, carried by 4 and 5, and answered in two parts.
        let first = confirms
            .resolve(vec![(2, Ok(Confirmation::Ack(None))), (4, Ok(Confirmation::Ack(Some(returned()))))]);
        assert_eq!(first.answers, []);
        assert!(first.failure.is_some());
        let second = confirms.resolve(vec![(3, Ok(Confirmation::Ack(None)))]);
        assert_eq!(second.answers, []);
        assert!(second.failure.is_some());
        let third = confirms
            .resolve(vec![(5, Ok(Confirmation::Ack(Some(returned())))), (6, Ok(Confirmation::Nack(None)))]);
        assert_eq!(third.answers, [(6, Err(PublishError::Full))], "a refusal is never durable");
    }

    #[test]
    fn a_return_that_a_refusal_carries_counts_as_well() {
        let mut confirms = SessionConfirms::default();
        let outcomes =
            [Confirmation::Ack(None), Confirmation::Nack(Some(returned())), Confirmation::Ack(None)];
        let resolved = confirms.resolve((0..).zip(outcomes.map(Ok)).collect());
        assert_eq!(resolved.answers, [(1, Err(PublishError::Full))]);
        assert!(resolved.failure.is_some());
    }

    #[test]
    fn only_a_positive_confirm_counts_and_an_error_ends_the_session() {
        let resolved = SessionConfirms::default().resolve(vec![
            (0, Ok(Confirmation::Ack(None))),
            (1, Ok(Confirmation::Nack(None))),
            (2, Err(lapin::ErrorKind::MissingHeartbeatError.into())),
            (3, Ok(Confirmation::NotRequested)),
        ]);
        assert_eq!(resolved.answers, [(0, Ok(())), (1, Err(PublishError::Full))]);
        assert!(resolved.failure.is_some());
        let good = SessionConfirms::default()
            .resolve(vec![(0, Ok(Confirmation::Ack(None))), (1, Ok(Confirmation::Nack(None)))]);
        assert_eq!(good.failure, None);
    }
}
