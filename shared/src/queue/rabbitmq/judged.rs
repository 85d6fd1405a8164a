//! Which publishes are durable, by the confirms and returns that landed together. Pure: lapin attaches
//! a returned message to whichever confirm completes next, so they are judged together.
use lapin::Confirmation;

use super::properties::id_of;
use crate::id::MessageId;
use crate::queue::PublishError;

/// The outcome of one publish, by its number.
pub(super) type Landed = (u64, lapin::Result<Confirmation>);

/// What outcomes that landed together say.
#[derive(Debug, PartialEq)]
pub(super) struct Judged {
    /// By number; a publish without an answer has to be made again.
    pub answers: Vec<(u64, Result<(), PublishError>)>,
    /// Why the session cannot go on.
    pub failure: Option<String>,
}

impl Judged {
    /// `id` tells the message of a publish.
    pub fn of(landed: Vec<Landed>, id: impl Fn(u64) -> MessageId) -> Self {
        let returned: Vec<_> = landed.iter().filter_map(|(_, outcome)| returned_id(outcome)).collect();
        // A returned message without an id could be any.
        let is_returned =
            |id: MessageId| returned.iter().any(|returned| returned.is_none_or(|one| one == id));
        let mut failure = (!returned.is_empty()).then(|| "no queue takes the messages".to_owned());
        let mut answers = Vec::with_capacity(landed.len());
        for (number, outcome) in landed {
            match outcome {
                Ok(Confirmation::Ack(_)) if is_returned(id(number)) => {}
                Ok(Confirmation::Ack(_)) => answers.push((number, Ok(()))),
                Ok(Confirmation::Nack(_)) => answers.push((number, Err(PublishError::Full))),
                Ok(Confirmation::NotRequested) => failure = Some("the channel has no confirms".into()),
                Err(error) => failure = failure.or(Some(error.to_string())),
            }
        }
        Self { answers, failure }
    }
}

/// `None` when the outcome carries no returned message, the inner one when that has no id of ours.
#[expect(clippy::option_option, reason = "a return without a readable id is not the absence of a return")]
fn returned_id(outcome: &lapin::Result<Confirmation>) -> Option<Option<MessageId>> {
    let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = outcome else {
        return None;
    };
    Some(id_of(&message.delivery.properties))
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::message::{BasicReturnMessage, Delivery};

    use super::*;
    use crate::id::IdIssuer;

    fn ids() -> Vec<MessageId> {
        let mut issuer = IdIssuer::new(1, 1);
        (0..4).map(|_| issuer.next(1_763_600_000_000)).collect()
    }

    fn returned(id: Option<MessageId>) -> BasicReturnMessage {
        let mut delivery = Delivery::mock(0, "".into(), "".into(), false, Vec::new());
        if let Some(id) = id {
            delivery.properties = BasicProperties::default().with_message_id(id.to_string().into());
        }
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    fn judge(outcomes: Vec<lapin::Result<Confirmation>>) -> Judged {
        let ids = ids();
        let landed =
            outcomes.into_iter().enumerate().map(|(index, outcome)| (index as u64, outcome)).collect();
        Judged::of(landed, |number| ids[usize::try_from(number).expect("small")])
    }

    #[test]
    fn a_return_speaks_of_its_own_message_whichever_confirm_carries_it() {
        let carried_by_another =
            vec![Ok(Confirmation::Ack(None)), Ok(Confirmation::Ack(Some(returned(Some(ids()[0])))))];
        let judged = judge(carried_by_another);
        assert_eq!(judged.answers, [(1, Ok(()))]);
        assert!(judged.failure.is_some());
        let carried_by_itself =
            vec![Ok(Confirmation::Ack(Some(returned(Some(ids()[0]))))), Ok(Confirmation::Ack(None))];
        assert_eq!(judge(carried_by_itself).answers, [(1, Ok(()))]);
    }

    #[test]
    fn a_return_without_an_id_leaves_no_acknowledgement_trusted() {
        let judged = judge(vec![
            Ok(Confirmation::Ack(None)),
            Ok(Confirmation::Nack(Some(returned(None)))),
            Ok(Confirmation::Ack(None)),
        ]);
        assert_eq!(judged.answers, [(1, Err(PublishError::Full))]);
        assert!(judged.failure.is_some());
    }

    #[test]
    fn only_a_positive_confirm_counts_and_an_error_ends_the_session() {
        let judged = judge(vec![
            Ok(Confirmation::Ack(None)),
            Ok(Confirmation::Nack(None)),
            Err(lapin::ErrorKind::MissingHeartbeatError.into()),
            Ok(Confirmation::NotRequested),
        ]);
        assert_eq!(judged.answers, [(0, Ok(())), (1, Err(PublishError::Full))]);
        assert!(judged.failure.is_some());
        let good = judge(vec![Ok(Confirmation::Ack(None)), Ok(Confirmation::Nack(None))]);
        assert_eq!(good.failure, None);
    }
}
