//! SIGKILL, to the agent and to its broker in turn, under load and on bad wires.

use std::time::Duration;

use fastrand::Rng;

use crate::sweep::Sweep;

/// How much of it.
struct Plan {
    seed: u64,
    kills: u32,
    per_second: u64,
}

async fn sweep(plan: Plan) -> anyhow::Result<()> {
    let Plan { seed, kills, per_second } = plan;
    let mut random = Rng::with_seed(seed);
    let mut sweep = Sweep::start().await?;
    for kill in 0..kills {
        let load = sweep.send(per_second, per_second);
        tokio::time::sleep(Duration::from_millis(random.u64(100..900))).await;
        if random.u8(..3) == 0 {
            sweep.disturb(&mut random).await;
        }
        if kill % 2 == 0 {
            sweep.agent.kill()?;
            // The world goes on without it.
            tokio::time::sleep(Duration::from_millis(random.u64(..300))).await;
            sweep.agent.resume().await?;
        } else {
            sweep.broker.kill()?;
            tokio::time::sleep(Duration::from_millis(random.u64(..300))).await;
            sweep.broker.resume().await?;
        }
        load.await??;
    }
    let account = sweep.audit().await?;
    println!("seed {seed}, {kills} kills, {account}");
    sweep.stop()
}

/// What was acknowledged is not lost, and nothing is done twice by a function that is idempotent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_of_kills_loses_nothing_and_does_nothing_twice() -> anyhow::Result<()> {
    sweep(Plan { seed: 7, kills: 8, per_second: 400 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the long one: 200 kills take some ten minutes"]
async fn a_sweep_of_200_kills_loses_nothing_and_does_nothing_twice() -> anyhow::Result<()> {
    let kills = std::env::var("TIDEGATE_KILLS").map_or(Ok(200), |kills| kills.parse())?;
    sweep(Plan { seed: fastrand::u64(..), kills, per_second: 400 }).await
}
