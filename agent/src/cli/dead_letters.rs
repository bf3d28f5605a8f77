//! `tidegate dead-letters`: what was given up on, and trying that again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::Failure;
use super::connect::AgentArgs;
use super::output::{self, Errors, Output, table};
use crate::api::client::{Client, ClientError};
use crate::api::dead_letters::{Page, Summary, Whole};
use crate::name::FunctionName;

/// Letters that are asked for at a time.
const PAGE: usize = 1_000;
/// Characters of a reason in the list; `show` has all of them.
const REASON_CHARS: usize = 60;

/// Shows what was given up on, and tries it again or drops it
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = false)]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Only letters of this function
    #[arg(long, value_name = "NAME", global = true)]
    function: Option<String>,
    /// Print what was found, or done, as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists them, oldest first; so does no verb at all
    List,
    /// Shows one whole: why it was given up on, the attributes, the payload
    Show {
        /// Of the list
        id: u64,
    },
    /// Tries again: the function gets the event as if it had just come, the broker the publish, the stream the record
    Replay(Which),
    /// Drops them for good
    Drop(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Of the list
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "ID")]
    ids: Vec<u64>,
    /// All of them, or with `--function` all of that function
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(args: &DeadLettersArgs) -> anyhow::Result<()> {
    let function = args.function.as_deref().map(FunctionName::parse).transpose();
    let function =
        function.map_err(|error| Failure::wrong(error.to_string(), "`tidegate status` lists the functions"))?;
    let mut agent = args.agent.connect().await?;
    match args.verb.as_ref().unwrap_or(&Verb::List) {
        Verb::List => list(&mut agent, function.as_ref(), args.json).await,
        Verb::Show { id } => show(&mut agent, *id, args.json).await,
        Verb::Replay(which) => {
            let path = |id| format!("/v1/dead-letters/{id}/replay");
            each(&mut agent, which, function.as_ref(), args.json, ("replayed", Method::POST, &path)).await
        }
        Verb::Drop(which) => {
            let path = |id| format!("/v1/dead-letters/{id}");
            each(&mut agent, which, function.as_ref(), args.json, ("dropped", Method::DELETE, &path)).await
        }
    }
}

async fn page(agent: &mut Client, function: Option<&FunctionName>, after: u64) -> Result<Page, ClientError> {
    let function = function.map(|function| format!("&function={function}")).unwrap_or_default();
    agent.get(&format!("/v1/dead-letters?after={after}&limit={PAGE}{function}")).await?.json()
}

async fn all(agent: &mut Client, function: Option<&FunctionName>) -> Result<Vec<Summary>, ClientError> {
    let (mut letters, mut after) = (Vec::new(), 0);
    loop {
        let page = page(agent, function, after).await?;
        letters.extend(page.letters);
        match page.next {
            Some(next) => after = next,
            None => return Ok(letters),
        }
    }
}

async fn list(agent: &mut Client, function: Option<&FunctionName>, json: bool) -> anyhow::Result<()> {
    let letters = all(agent, function).await?;
    if json {
        return Ok(Output::json(&letters)?);
    }
    if letters.is_empty() {
        return Ok(Output::line("no dead letters")?);
    }
    let rows = letters.iter().map(|letter| {
        vec![
            letter.id.to_string(),
            output::time(letter.time_ms),
            whose(letter),
            letter.attempts.to_string(),
            letter.outcome.clone(),
            letter.topic.clone().unwrap_or_else(|| "-".to_owned()),
            in_one_line(&letter.reason),
        ]
    });
    let head = ["ID", "TIME", "OF", "ATTEMPTS", "OUTCOME", "TOPIC", "REASON"];
    Ok(Output::line(&table(&head, &rows.collect::<Vec<_>>()))?)
}

async fn show(agent: &mut Client, id: u64, json: bool) -> anyhow::Result<()> {
    let reply = agent.get(&format!("/v1/dead-letters/{id}")).await?;
    if json {
        return Ok(Output::json(&reply.json::<Value>()?)?);
    }
    let whole: Whole = reply.json()?;
    Output::line(&describe(&whole))?;
    let kept = whole.kept.values().find_map(Value::as_object);
    Ok(Output::bytes(&payload(kept))?)
}

/// The function, or the stream.
fn whose(letter: &Summary) -> String {
    let stream = letter.stream.as_ref().map(|stream| format!("stream {stream}"));
    letter.function.as_ref().map(ToString::to_string).or(stream).unwrap_or_else(|| "-".to_owned())
}

/// Everything but the payload.
fn describe(whole: &Whole) -> String {
    let Summary { id, version, attempts, outcome, reason, .. } = &whole.summary;
    let of = whose(&whole.summary);
    let version = version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
    let time = output::time(whole.summary.time_ms);
    let attempts = if *attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    let mut lines = vec![
        format!("dead letter {id} of {of}{version}, given up on at {time}"),
        format!("{outcome} after {attempts}: {reason}"),
    ];
    for (what, kept) in &whole.kept {
        lines.push(format!("\n{what}"));
        let kept = kept.as_object().into_iter().flatten().filter(|(name, _)| !name.starts_with("data"));
        lines.extend(kept.filter(|(name, _)| *name != "datacontenttype").map(|(name, value)| line(name, value)));
    }
    let content_type = whole.kept.values().find_map(|kept| kept["datacontenttype"].as_str());
    lines.extend(content_type.map(|content_type| line("content type", &Value::from(content_type))));
    lines.push(format!("\npayload, {} bytes", whole.summary.payload_bytes));
    lines.join("\n")
}

fn line(name: &str, value: &Value) -> String {
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("  {name:12} {value}")
}

/// As it came, but for JSON's white space.
fn payload(kept: Option<&Map<String, Value>>) -> Vec<u8> {
    let Some(kept) = kept else { return Vec::new() };
    let end = |mut bytes: Vec<u8>| {
        bytes.push(b'\n');
        bytes
    };
    match (kept.get("data"), kept.get("data_text").and_then(Value::as_str), kept.get("data_base64")) {
        (Some(json), ..) => end(json.to_string().into_bytes()),
        (_, Some(text), _) => end(text.as_bytes().to_vec()),
        (.., Some(base64)) => STANDARD.decode(base64.as_str().unwrap_or_default()).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Does something to each of the letters that are meant. All are tried; the first failure is the one that is told.
async fn each(
    agent: &mut Client,
    which: &Which,
    function: Option<&FunctionName>,
    json: bool,
    (done, method, path): (&str, Method, &dyn Fn(u64) -> String),
) -> anyhow::Result<()> {
    let ids: Vec<u64> = match (which.all, function) {
        (true, function) => all(agent, function).await?.iter().map(|letter| letter.id).collect(),
        (false, None) => which.ids.clone(),
        (false, Some(_)) => {
            let hint = "name the letters by their ids, or say `--all --function NAME`";
            return Err(Failure::wrong("`--function` goes with `--all`", hint).into());
        }
    };
    let (mut through, mut failed) = (Vec::new(), None);
    for id in &ids {
        let reply = agent.call(method.clone(), &path(*id), &[], Vec::new().into()).await?;
        match reply.success() {
            Ok(_) => through.push(*id),
            // Gone meanwhile, which is what was wanted of all.
            Err(ClientError::Refused { status, .. }) if which.all && status == 404 && !is_there(agent, *id).await? => {}
            Err(error) => drop(failed.get_or_insert(error)),
        }
        Errors::progress(&format!("{} of {}", through.len(), ids.len()));
    }
    if json {
        Output::json(&json!({ done: through }))?;
    } else if failed.is_none() || !through.is_empty() {
        let letters = if through.len() == 1 { "letter" } else { "letters" };
        Output::line(&format!("{done} {} dead {letters}", through.len()))?;
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

async fn is_there(agent: &mut Client, id: u64) -> Result<bool, ClientError> {
    Ok(agent.get(&format!("/v1/dead-letters/{id}")).await?.status.is_success())
}

fn in_one_line(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    if line.chars().count() <= REASON_CHARS && line.len() == reason.len() {
        return line.to_owned();
    }
    line.chars().take(REASON_CHARS).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_in_the_list_is_one_short_line() {
        assert_eq!(in_one_line("trapped: unreachable"), "trapped: unreachable");
        assert_eq!(in_one_line("trapped\nat f"), "trapped…");
        assert_eq!(in_one_line(&"x".repeat(100)).chars().count(), REASON_CHARS + 1);
    }

    #[test]
    fn a_payload_is_shown_as_what_it_is() {
        let shown = |kept: Value| payload(kept.as_object());
        assert_eq!(shown(json!({ "data": { "a": 1 } })), b"{\"a\":1}\n");
        assert_eq!(shown(json!({ "data_text": "x" })), b"x\n");
        assert_eq!(shown(json!({ "data_base64": "AP8=" })), b"\x00\xff");
    }
}
