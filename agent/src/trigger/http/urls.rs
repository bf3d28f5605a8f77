//! All function URLs of one gateway: which one a request is for.

use std::io;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::{HttpTrigger, Method};
use crate::metrics::{FunctionMetrics, Metrics};
use crate::name::FunctionName;

/// A secret that callers send. Only its digest is kept.
#[derive(Clone, Debug)]
pub struct Token([u8; 32]);

impl Token {
    /// What `text` is, without its trailing line end.
    pub fn new(text: &str) -> Self {
        Self(Sha256::digest(text.trim_end()).into())
    }

    /// The content of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(file: &Path) -> io::Result<Self> {
        std::fs::read_to_string(file).map(|text| Self::new(&text))
    }

    /// Whether `given` is it. How long that takes says nothing: digests are compared, which a caller cannot steer.
    pub fn is(&self, given: &str) -> bool {
        self.0 == <[u8; 32]>::from(Sha256::digest(given))
    }
}

/// One of them.
#[derive(Debug)]
pub struct FunctionUrl {
    /// What runs.
    pub function: FunctionName,
    /// When, and how.
    pub trigger: HttpTrigger,
    /// What callers have to send, besides that the API's token will do.
    pub token: Option<Token>,
    /// A permit for each call that the function may have at the same time.
    pub calls: Arc<Semaphore>,
    /// The function's numbers.
    pub metrics: Arc<FunctionMetrics>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct FunctionUrls {
    /// Those that say more of a path first.
    urls: Vec<Arc<FunctionUrl>>,
}

/// What a request is for.
#[derive(Debug)]
pub enum Found {
    /// This, with the parameters of its path.
    Url(Arc<FunctionUrl>, Vec<(String, String)>),
    /// There is something at the path, for these methods.
    Methods(Vec<Method>),
    /// Nothing.
    Nothing,
}

impl FunctionUrls {
    /// The triggers of all functions, with at most `calls_max` calls of one function at the same time. Those that run count, by way of
    /// `before`.
    ///
    /// # Errors
    /// When the file of a token cannot be read.
    pub fn new(
        triggers: impl IntoIterator<Item = (FunctionName, HttpTrigger)>,
        calls_max: usize,
        metrics: &Metrics,
        before: &Self,
    ) -> io::Result<Self> {
        let mut urls: Vec<Arc<FunctionUrl>> = Vec::new();
        for (function, trigger) in triggers {
            let token = trigger.token_file.as_deref().map(Token::read).transpose()?;
            let known = urls.iter().chain(&before.urls).find(|url| url.function == function);
            let calls = known.map_or_else(|| Arc::new(Semaphore::new(calls_max)), |url| Arc::clone(&url.calls));
            let metrics = metrics.function(&function);
            urls.push(Arc::new(FunctionUrl { function, trigger, token, calls, metrics }));
        }
        urls.sort_by_key(|url| url.trigger.path.ranks());
        Ok(Self { urls })
    }

    /// What a request of `method` for `path` is for; `path` without [`super::PREFIX`].
    pub fn find(&self, method: &str, path: &str) -> Found {
        let mut methods: Vec<Method> = Vec::new();
        for url in &self.urls {
            let Some(parameters) = url.trigger.path.parameters(path) else { continue };
            if url.trigger.takes(method) {
                return Found::Url(Arc::clone(url), parameters);
            }
            methods.extend(url.trigger.methods());
        }
        methods.sort_unstable();
        methods.dedup();
        if methods.is_empty() { Found::Nothing } else { Found::Methods(methods) }
    }

    /// The methods that there are at `path`.
    pub fn methods(&self, path: &str) -> Vec<Method> {
        let there = self.urls.iter().filter(|url| url.trigger.path.parameters(path).is_some());
        let mut methods: Vec<_> = there.flat_map(|url| url.trigger.methods()).copied().collect();
        methods.sort_unstable();
        methods.dedup();
        methods
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Auth, EventShape, PathTemplate};
    use super::*;

    fn trigger(path: &str, methods: &[Method]) -> HttpTrigger {
        HttpTrigger {
            path: PathTemplate::parse(path).unwrap(),
            methods: methods.to_vec(),
            event_shape: EventShape::Native,
            auth: Auth::Token,
            token_file: None,
            cors: None,
        }
    }

    fn urls(before: &FunctionUrls) -> FunctionUrls {
        let name = |name| FunctionName::parse(name).unwrap();
        let triggers = [
            (name("all"), trigger("/{all+}", &[])),
            (name("order"), trigger("/orders/{id}", &[Method::Get, Method::Delete])),
            (name("newest"), trigger("/orders/newest", &[Method::Get])),
            (name("files"), trigger("/orders/{id}/{file+}", &[Method::Get])),
        ];
        FunctionUrls::new(triggers, 2, &Metrics::new(), before).unwrap()
    }

    #[track_caller]
    fn check(method: &str, path: &str, expected: &str) {
        let found = match urls(&FunctionUrls::default()).find(method, path) {
            Found::Url(url, _) => url.function.to_string(),
            Found::Methods(methods) => methods.iter().map(|method| method.word()).collect::<Vec<_>>().join(","),
            Found::Nothing => "nothing".to_owned(),
        };
        assert_eq!(found, expected, "{method} {path}");
    }

    #[test]
    fn the_url_that_says_most_of_a_path_gets_the_request() {
        check("GET", "/orders/newest", "newest");
        check("GET", "/orders/7", "order");
        check("GET", "/orders/7/a/b", "files");
        check("GET", "/orders", "all");
        check("DELETE", "/orders/newest", "order");
        check("PURGE", "/orders/newest", "all");
        check("GET", "/", "nothing");
    }

    #[test]
    fn a_method_that_nobody_takes_is_told_from_a_path_that_is_not_there() {
        let name = FunctionName::parse("order").unwrap();
        let triggers = [(name, trigger("/orders/{id}", &[Method::Get, Method::Delete]))];
        let urls = FunctionUrls::new(triggers, 2, &Metrics::new(), &FunctionUrls::default()).unwrap();
        let Found::Methods(methods) = urls.find("PUT", "/orders/7") else { panic!("there is something") };
        assert_eq!(methods, [Method::Get, Method::Delete]);
        assert!(matches!(urls.find("GET", "/orders"), Found::Nothing));
    }

    #[test]
    fn calls_that_run_count_after_a_reload() {
        let before = urls(&FunctionUrls::default());
        let Found::Url(url, _) = before.find("GET", "/orders/7") else { panic!("it is there") };
        let _runs = Arc::clone(&url.calls).try_acquire_owned().unwrap();
        let after = urls(&before);
        let Found::Url(url, _) = after.find("GET", "/orders/7") else { panic!("it is there") };
        assert_eq!(url.calls.available_permits(), 1);
    }
}
