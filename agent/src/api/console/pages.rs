//! The pages: each a template with what it shows.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Path, Query, State};
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::view::{
    Figure, FunctionRow, LetterRow, LogRow, ModelRow, Origin, Phase, RunRow, StreamRow, Waterfall, figures, models,
    origins, payload, phases,
};
use super::{POLICY, ROOT, assets, html, view};
use crate::api::Shared;
use crate::api::dead_letters;
use crate::api::error::{ApiError, ErrorBody};
use crate::api::guard::Guard;
use crate::api::invocations::function_named;
use crate::api::routes::Agent;
use crate::api::status::{FunctionStatus, Status};
use crate::dispatch::StoredLetter;
use crate::name::FunctionName;
use crate::readable::duration;
use crate::telemetry::{RecentLatency, RecentRun};

/// Runs that failed, on the first page.
const FAILURES: usize = 8;
/// Runs on the page of a function.
const RUNS: usize = 12;
/// Dead letters on one page.
const LETTERS: usize = 50;
/// Log lines on one page: a few screens, all of which may be others a second later.
const LINES: usize = 100;

/// Who asks, as the guard of the listener knows; none on the Unix socket.
type Caller = Option<Extension<Arc<Guard>>>;

/// What all pages have around them.
pub(super) struct Frame {
    title: String,
    gateway: String,
    /// Which of the links in the head is this page.
    tab: &'static str,
    /// Whether the page keeps itself fresh.
    is_live: bool,
    acts: bool,
    signs_out: bool,
    /// Says which scripts and styles are the page's own: nobody can know it before.
    nonce: String,
}

impl Frame {
    fn new(shared: &Shared, caller: &Caller, status: &Status, tab: &'static str, title: String) -> Self {
        Self {
            title,
            gateway: status.gateway.to_string(),
            tab,
            is_live: true,
            acts: shared.console.acts(),
            signs_out: caller.as_ref().is_some_and(|guard| guard.asks()),
            ..Self::bare("")
        }
    }

    /// Of a page that says something once.
    fn bare(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            gateway: String::new(),
            tab: "",
            is_live: false,
            acts: false,
            signs_out: false,
            nonce: uuid::Uuid::new_v4().simple().to_string(),
        }
    }

    fn still(self) -> Self {
        Self { is_live: false, ..self }
    }

    /// The `page` that has this around it. Its scripts and styles are those that bear its nonce and no others: not what is inline, nor
    /// what a function URL returns, though that is from here too.
    fn show(&self, status: StatusCode, page: &impl Template) -> Response {
        let (mut response, nonce) = (html(status, page), &self.nonce);
        let policy = HeaderValue::from_str(&format!("{POLICY}; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"));
        response.headers_mut().extend(policy.ok().map(|policy| (CONTENT_SECURITY_POLICY, policy)));
        response
    }
}

/// How all stands, and how fast it changes: each look is one sample of the rates.
fn look(shared: &Shared) -> Status {
    let status = shared.agent.status();
    shared.console.rates().look(view::counts(&status), shared.clock.instant());
    status
}

/// How far back the latencies go.
fn window(shared: &Shared) -> String {
    format!("{} minutes", shared.limits.recent_window.0.as_secs() / 60)
}

/// How long the function's runs took of late.
fn recent_latency(shared: &Shared, function: &FunctionName) -> RecentLatency {
    let (now, window) = (shared.clock.instant(), shared.limits.recent_window.0);
    shared.agent.metrics().known(function).map(|numbers| numbers.recent.latency(now, window)).unwrap_or_default()
}

/// The runs of all functions that are kept, the newest first.
fn runs(shared: &Shared, status: &Status) -> Vec<(FunctionName, RecentRun)> {
    let mut runs = Vec::new();
    for function in &status.functions {
        let numbers = shared.agent.metrics().known(&function.name);
        let kept = numbers.map(|numbers| numbers.recent.newest_first()).unwrap_or_default();
        runs.extend(kept.into_iter().map(|run| (function.name.clone(), run)));
    }
    runs.sort_by_key(|(_, run)| std::cmp::Reverse(run.started_ms));
    runs
}

#[derive(Template)]
#[template(path = "console/overview.html")]
struct Overview {
    frame: Frame,
    unhealthy: Vec<String>,
    version: String,
    uptime: String,
    deployment: Option<String>,
    figures: Vec<Figure>,
    /// How far back latencies go.
    window: String,
    functions: Vec<FunctionRow>,
    unclaimed: Vec<(String, u64)>,
    origins: Vec<Origin>,
    streams: Vec<StreamRow>,
    models: Vec<ModelRow>,
    failures: Vec<RunRow>,
}

pub(super) async fn overview(State(shared): Agent, caller: Caller) -> Response {
    let status = look(&shared);
    let frame = Frame::new(&shared, &caller, &status, "overview", "Overview".to_owned());
    let runs = runs(&shared, &status);
    let failures = runs.iter().filter(|(_, run)| run.reason.is_some()).take(FAILURES);
    let rates = shared.console.rates();
    let row = |function: &FunctionStatus| FunctionRow::of(function, &recent_latency(&shared, &function.name), &rates);
    let active = status.deployment.as_ref().map(|deployment| {
        deployment
            .active
            .as_ref()
            .map_or_else(|| "no deployment".to_owned(), |active| format!("deployment {}", active.number))
    });
    let page = Overview {
        frame,
        unhealthy: shared.agent.health().reasons,
        version: status.version.clone(),
        uptime: duration(std::time::Duration::from_millis(status.uptime_ms)),
        deployment: active,
        figures: figures(&status, &rates),
        window: window(&shared),
        functions: status.functions.iter().map(row).collect(),
        unclaimed: status.unclaimed.iter().map(|gone| (gone.function.to_string(), gone.events)).collect(),
        origins: origins(&status, &rates),
        streams: status.streams.iter().map(|stream| StreamRow::of(stream, &rates)).collect(),
        models: models(&status, &rates),
        failures: failures.map(|(function, run)| RunRow::of(function.as_str(), run)).collect(),
    };
    drop(rates);
    page.frame.show(StatusCode::OK, &page)
}

/// What came of a test event.
#[derive(Template)]
#[template(path = "console/answer.html")]
pub(super) struct AnswerView {
    pub(super) outcome: String,
    pub(super) is_bad: bool,
    pub(super) text: String,
    /// The run, when there was one.
    pub(super) run: Option<RunLink>,
}

pub(super) struct RunLink {
    pub(super) function: String,
    pub(super) invocation: String,
    pub(super) took: String,
    /// Whether it can be looked at.
    pub(super) is_kept: bool,
}

#[derive(Template)]
#[template(path = "console/function.html")]
struct FunctionPage {
    frame: Frame,
    row: FunctionRow,
    /// How far back latencies go.
    window: String,
    digest: String,
    received: u64,
    outcomes: Vec<(String, u64)>,
    retries: u64,
    cold_starts: u64,
    dead_letters: u64,
    phases: [Phase; 3],
    runs: Vec<RunRow>,
    subject: String,
    payload: String,
    answer: Option<AnswerView>,
}

/// A test event, as the form has it.
#[derive(Default)]
pub(super) struct TestEvent {
    pub(super) subject: String,
    pub(super) payload: String,
}

pub(super) async fn function(
    State(shared): Agent,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let test = TestEvent { payload: "{}".to_owned(), ..TestEvent::default() };
    function_page(&shared, &caller, &name, test, None)
}

/// The page of a function, perhaps with what came of a test event.
pub(super) fn function_page(
    shared: &Shared,
    caller: &Caller,
    name: &str,
    test: TestEvent,
    answer: Option<AnswerView>,
) -> Result<Response, Failure> {
    let name = function_named(shared, name)?;
    let status = look(shared);
    let function = function_of(&status, &name)?;
    let (numbers, recent) = (&function.numbers, recent_latency(shared, &name));
    let kept = shared.agent.metrics().known(&name).map(|numbers| numbers.recent.newest_first()).unwrap_or_default();
    let page = FunctionPage {
        frame: Frame::new(shared, caller, &status, "", name.to_string()),
        row: FunctionRow::of(function, &recent, &shared.console.rates()),
        window: window(shared),
        digest: function.digest.clone(),
        received: numbers.received,
        outcomes: numbers.invocations.iter().map(|(outcome, n)| (outcome.clone(), *n)).collect(),
        retries: numbers.retries,
        cold_starts: numbers.cold_starts,
        dead_letters: numbers.dead_letters,
        phases: phases(&recent),
        runs: kept.iter().take(RUNS).map(|run| RunRow::of(name.as_str(), run)).collect(),
        subject: test.subject,
        payload: test.payload,
        answer,
    };
    Ok(page.frame.show(StatusCode::OK, &page))
}

fn function_of<'a>(status: &'a Status, name: &FunctionName) -> Result<&'a FunctionStatus, ApiError> {
    status.functions.iter().find(|function| function.name == *name).ok_or_else(|| ApiError::unknown(name))
}

#[derive(Template)]
#[template(path = "console/trace.html")]
struct TracePage {
    frame: Frame,
    function: String,
    run: RecentRun,
    time: String,
    took: String,
    falls: Vec<Waterfall>,
}

pub(super) async fn trace(
    State(shared): Agent,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let name = function_named(&shared, &name)?;
    let status = shared.agent.status();
    let runs = runs(&shared, &status);
    let (_, run) = runs.iter().find(|(function, run)| *function == name && run.invocation == id).ok_or_else(|| {
        ApiError::new(StatusCode::NOT_FOUND, format!("run {id} of `{name}` is not kept any more")).hint(
            "of each function the last runs are kept, and of those that succeed only a few in each second; with `[trace]` all go to a collector",
        )
    })?;
    let mut all: Vec<_> = runs.iter().filter(|(_, other)| other.is_of_one_event(run)).collect();
    all.sort_by_key(|(_, run)| (run.started_ms, run.attempt));
    let began_ms = all.iter().map(|(_, run)| run.started_ms).min().unwrap_or(run.started_ms);
    let ended_us = |run: &RecentRun| view::later_ms(run, began_ms) * 1_000 + run.total_us();
    let page = TracePage {
        frame: Frame::new(&shared, &caller, &status, "", format!("Event of {name}")).still(),
        function: name.to_string(),
        time: crate::readable::time(run.started_ms),
        took: crate::readable::micros(all.iter().map(|(_, run)| ended_us(run)).max().unwrap_or(0)),
        falls: all.iter().map(|(function, run)| Waterfall::of(function.as_str(), run, began_ms)).collect(),
        run: run.clone(),
    };
    Ok(page.frame.show(StatusCode::OK, &page))
}

#[derive(Deserialize, Default)]
struct LetterQuery {
    #[serde(default)]
    after: u64,
    replayed: Option<u64>,
    dropped: Option<u64>,
}

#[derive(Template)]
#[template(path = "console/letters.html")]
struct LettersPage {
    frame: Frame,
    done: Option<String>,
    letters: Vec<LetterRow>,
    next: Option<u64>,
}

pub(super) async fn letters(State(shared): Agent, caller: Caller, uri: Uri) -> Result<Response, Failure> {
    // A page is for people: what they did not mean is left out.
    let query = Query::<LetterQuery>::try_from_uri(&uri).map(|Query(query)| query).unwrap_or_default();
    let page = shared.agent.letters(None, query.after, LETTERS).await.map_err(dead_letters::failed)?;
    let replayed = query.replayed.map(|id| format!("Dead letter {id} is being tried again."));
    let status = shared.agent.status();
    let page = LettersPage {
        frame: Frame::new(&shared, &caller, &status, "letters", "Dead letters".to_owned()).still(),
        done: replayed.or_else(|| query.dropped.map(|id| format!("Dead letter {id} was dropped."))),
        letters: page.letters.iter().map(|stored| dead_letters::Summary::from(stored).into()).collect(),
        next: page.next,
    };
    Ok(page.frame.show(StatusCode::OK, &page))
}

#[derive(Template)]
#[template(path = "console/letter.html")]
struct LetterPage {
    frame: Frame,
    letter: LetterRow,
    version: String,
    payload: String,
}

pub(super) async fn letter(State(shared): Agent, caller: Caller, Path(id): Path<String>) -> Result<Response, Failure> {
    let stored: StoredLetter = shared.agent.letter(dead_letters::id_of(&id)?).await.map_err(dead_letters::failed)?;
    let status = shared.agent.status();
    let page = LetterPage {
        frame: Frame::new(&shared, &caller, &status, "letters", format!("Dead letter {id}")).still(),
        version: stored.letter.version.clone().unwrap_or_default(),
        payload: payload(stored.letter.data()),
        letter: dead_letters::Summary::from(&stored).into(),
    };
    Ok(page.frame.show(StatusCode::OK, &page))
}

#[derive(Deserialize, Default)]
struct LogQuery {
    #[serde(default)]
    function: String,
    #[serde(default)]
    level: String,
}

#[derive(Template)]
#[template(path = "console/log.html")]
struct LogPage {
    frame: Frame,
    /// To ask for the same again.
    address: String,
    function: String,
    functions: Vec<String>,
    level: String,
    lines: Vec<LogRow>,
}

/// What a choice of level shows, the worst first.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

pub(super) async fn log(State(shared): Agent, caller: Caller, uri: Uri) -> Response {
    let query = Query::<LogQuery>::try_from_uri(&uri).map(|Query(query)| query).unwrap_or_default();
    let worst = LEVELS.iter().position(|level| *level == query.level).unwrap_or(LEVELS.len());
    let (kept, _) = shared.agent.logs().follow(usize::MAX);
    let wanted = kept.iter().rev().filter(|record| {
        let level = LEVELS.iter().position(|level| *level == record.level).unwrap_or(0);
        level <= worst && (query.function.is_empty() || record.function() == Some(&query.function))
    });
    let status = shared.agent.status();
    let page = LogPage {
        frame: Frame::new(&shared, &caller, &status, "log", "Log".to_owned()),
        address: uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        functions: status.functions.iter().map(|function| function.name.to_string()).collect(),
        lines: wanted.take(LINES).map(|record| LogRow::from(&**record)).collect(),
        function: query.function,
        level: query.level,
    };
    page.frame.show(StatusCode::OK, &page)
}

#[derive(Template)]
#[template(path = "console/sign_in.html")]
struct SignIn {
    frame: Frame,
    is_wrong: bool,
}

pub(super) async fn sign_in(caller: Caller) -> Response {
    match caller {
        Some(guard) if guard.asks() => sign_in_page(false),
        _ => Redirect::to(ROOT).into_response(),
    }
}

/// The form; `is_wrong` after a token that was not the right one.
pub(super) fn sign_in_page(is_wrong: bool) -> Response {
    let status = if is_wrong { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
    let page = SignIn { frame: Frame::bare("Sign in"), is_wrong };
    page.frame.show(status, &page)
}

#[derive(Template)]
#[template(path = "console/failure.html")]
struct FailurePage {
    frame: Frame,
    error: String,
    hint: String,
}

/// Says why there is nothing else to see.
pub(super) fn failure(status: StatusCode, body: ErrorBody) -> Response {
    let title = status.canonical_reason().unwrap_or("Not now");
    let page = FailurePage { frame: Frame::bare(title), error: body.error, hint: body.hint.unwrap_or_default() };
    page.frame.show(status, &page)
}

/// An error of the API as a page.
pub(super) struct Failure(ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, body, headers) = self.0.told();
        let mut response = failure(status, body);
        response.headers_mut().extend(headers);
        response
    }
}

/// Whether htmx asks, for a part of a page.
pub(super) fn is_for_htmx(headers: &HeaderMap) -> bool {
    headers.contains_key(super::HX_REQUEST)
}
