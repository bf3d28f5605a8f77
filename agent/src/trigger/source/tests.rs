//! An outlet whose function does with events what a test says.

use super::*;
use crate::config::TriggerConfig;
use crate::metrics::Metrics;

/// Takes what it is given, and has the test see to it.
#[derive(Default)]
pub(in crate::trigger) struct Function {
    taken: Mutex<Vec<(Arc<Event>, Receipt)>>,
    /// How often it has no room before it takes the next.
    no_room: AtomicU64,
}

impl Function {
    /// What it was given since.
    pub(in crate::trigger) fn taken(&self) -> Vec<(Arc<Event>, Receipt)> {
        std::mem::take(&mut self.taken.lock().unwrap())
    }
}

impl Submit for Function {
    fn submit(&self, _: &FunctionName, event: Arc<Event>, _: Delivery, receipt: Receipt) -> Result<(), Refused> {
        let no_room = self.no_room.load(Ordering::Relaxed);
        self.no_room.store(no_room.saturating_sub(1), Ordering::Relaxed);
        if no_room > 0 {
            return Err(Refused::Full { events: 1, bytes: 1 });
        }
        self.taken.lock().unwrap().push((event, receipt));
        Ok(())
    }
}

/// The outlet of a source that one function hears by `trigger`, in TOML.
pub(in crate::trigger) fn outlet(trigger: &str, metrics: &Metrics) -> (Outlet, Arc<Function>) {
    let (limits, clock, function) = (Limits::default(), Clock::system(), Arc::new(Function::default()));
    let trigger: TriggerConfig = toml::from_str(trigger).unwrap();
    let name = FunctionName::parse("f").unwrap();
    let filter = trigger
        .only
        .clone()
        .map(|only| Arc::new(Filter::new(only, name.clone(), metrics.function(&name), &limits, clock.clone())));
    let routes = vec![Listener { function: name, trigger, filter, window: None }];
    let bytes_max = usize::try_from(limits.source_bytes_max.0).unwrap();
    let outlet = Outlet {
        before: None,
        orders: None,
        source: "process:radio".into(),
        board: Arc::new(Board { routes: RwLock::new(routes), ..Board::default() }),
        submit: Arc::clone(&function) as Arc<dyn Submit>,
        room: Arc::new(Semaphore::new(bytes_max)),
        bytes_max,
        line_bytes_max: 0,
        files_max: 0,
        state: PathBuf::new(),
        clock,
        stop: CancellationToken::new(),
    };
    (outlet, function)
}

/// What is wrong with its source now.
pub(in crate::trigger) fn trouble(outlet: &Outlet) -> Option<String> {
    outlet.board.trouble.lock().unwrap().now.clone()
}

fn says(line: &'static str) -> Observed {
    Observed { kind: "process.line", data: Bytes::from_static(line.as_bytes()), ..Observed::default() }
}

const FILTERED: &str = "process = { source = \"radio\" }\nonly = { changed = \"/t\" }";

/// Far more than a source may have under way, while the function is still at the first.
#[tokio::test(start_paused = true)]
async fn what_a_filter_leaves_out_holds_up_no_source_that_says_it_once() {
    let (outlet, function) = outlet(FILTERED, &Metrics::new());
    for _ in 0..10_000 {
        drop(timeout(Duration::from_secs(3_600), outlet.tell(says("{\"t\":1}"))).await.unwrap());
    }
    assert_eq!(function.taken().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_counts_once_as_not_compared_however_long_it_waits_for_room() {
    let metrics = Metrics::new();
    let (outlet, function) = outlet(FILTERED, &metrics);
    function.no_room.store(7, Ordering::Relaxed);
    drop(outlet.tell(says("no JSON")).await);
    function.taken().into_iter().for_each(|(_, receipt)| receipt.keep());
    assert_eq!(metrics.function(&FunctionName::parse("f").unwrap()).unfiltered.get(), 1);
}
