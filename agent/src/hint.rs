//! How an error is told: what and why not, cause by cause, then what to do about it, once and last.

use crate::inference::InferenceError;

/// An error in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What went wrong first, then why.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Told {
    /// The whole chain of `error`. The hint is the first that any of them brings along.
    pub fn of(error: &anyhow::Error) -> Self {
        let mut told = Self::default();
        for cause in error.chain() {
            let text = cause.to_string();
            let (what, hint) = split(&text);
            let of_model = || cause.downcast_ref::<InferenceError>().and_then(InferenceError::hint);
            told.hint = told.hint.or_else(|| hint.map(str::to_owned)).or_else(of_model);
            // Libraries often repeat their cause in their own words.
            if !told.causes.last().is_some_and(|said| said.contains(what)) {
                told.causes.push(what.to_owned());
            }
        }
        told
    }

    /// All causes on one line, and the hint below.
    pub fn text(&self) -> String {
        let causes = self.causes.join(": ");
        self.hint.as_ref().map_or(causes.clone(), |hint| format!("{causes}\n\nhint: {hint}"))
    }
}

/// An error's own words, and the hint behind them.
fn split(text: &str) -> (&str, Option<&str>) {
    let parts = ["\n\nhint: ", "\nhint: ", "; hint: "].iter().find_map(|mark| text.split_once(mark));
    parts.map_or((text, None), |(what, hint)| (what, Some(hint)))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn the_hint_comes_once_and_last() {
        let error = anyhow!("no export `handle` found")
            .context("function `x` does not fit the contract; hint: build it again")
            .context("function `x` cannot be loaded");
        assert_eq!(
            Told::of(&error).text(),
            "function `x` cannot be loaded: function `x` does not fit the contract: no export `handle` found\n\nhint: build it again"
        );
    }

    #[test]
    fn a_cause_that_repeats_is_told_once() {
        let error = anyhow!("connection refused").context("cannot connect: connection refused");
        assert_eq!(Told::of(&error), Told { causes: vec!["cannot connect: connection refused".into()], hint: None });
    }
}
