//! The consumer as a process while its broker has a memory alarm and blocks publishers.
use crate::private::on_a_private_broker;
use crate::stops::Process;
use crate::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_the_broker_blocks_the_events_is_obeyed_in_time() {
    on_a_private_broker("alarmed", |mut rig, broker| async move {
        let port = testkit::servers::free_address().expect("a port").port();
        let process = Process::start(&rig.config, port);
        let message = rig.message("before", 1);
        rig.publish(message).await;
        rig.wait_for_value("before", 1).await;
        broker.memory_alarm(true).await;
        // Its next heartbeat meets the alarm.
        wait_for("blocked events", async || broker.blocks("forebay events publisher").await).await;
        process.ends_in_time().await;
        broker.memory_alarm(false).await;
        rig
    })
    .await;
}
