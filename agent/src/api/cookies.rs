//! What functions may have a browser keep: it is at the address of the API and its console too.

use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, HeaderValue};

use crate::trigger::http::PREFIX;

/// Has the cookies of an answer sent back to function URLs and nowhere else: enough of them, sent to the console, would make each request
/// to it too large. What would take away cookies of others is left out. `url` is the path of the function URL that answers.
pub(super) fn confine(headers: &mut HeaderMap, url: &str) {
    headers.remove("clear-site-data");
    let set: Vec<_> = headers.get_all(SET_COOKIE).iter().filter_map(|cookie| confined(cookie, url)).collect();
    headers.remove(SET_COOKIE);
    headers.extend(set.into_iter().map(|cookie| (SET_COOKIE, cookie)));
}

/// The same cookie with a `Path` below [`PREFIX`]. Functions know their paths without it. A cookie without a path has the folder of its URL.
fn confined(cookie: &HeaderValue, url: &str) -> Option<HeaderValue> {
    let (mut kept, mut path) = (Vec::new(), None);
    for (at, part) in cookie.as_bytes().split(|byte| *byte == b';').enumerate() {
        let (name, value) = part.split_at(part.iter().position(|byte| *byte == b'=').unwrap_or(part.len()));
        // Of two the later one counts.
        if at > 0 && name.trim_ascii().eq_ignore_ascii_case(b"path") {
            path = Some(value.get(1..).unwrap_or_default().trim_ascii());
        } else {
            kept.push(part);
        }
    }
    let mut confined = kept.join(&b';');
    // The folder of `/fn` is all of the address.
    let whole = (url == PREFIX).then_some(b"/".as_slice());
    if let Some(path) = path.filter(|path| path.starts_with(b"/")).or(whole) {
        let below = path.strip_prefix(PREFIX.as_bytes()).filter(|rest| rest.is_empty() || rest.starts_with(b"/"));
        confined.extend_from_slice(b"; Path=");
        confined.extend_from_slice(PREFIX.as_bytes());
        confined.extend_from_slice(below.unwrap_or(if path == b"/" { b"" } else { path }));
    }
    HeaderValue::from_bytes(&confined).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(set: &str, expected: &str) {
        check_at("/fn/orders", set, expected);
    }

    #[track_caller]
    fn check_at(url: &str, set: &str, expected: &str) {
        let mut headers = HeaderMap::from_iter([(SET_COOKIE, HeaderValue::from_str(set).unwrap())]);
        confine(&mut headers, url);
        assert_eq!(headers[SET_COOKIE], expected, "{set}");
    }

    #[test]
    fn a_functions_cookies_go_to_function_urls_only() {
        check("cart=7", "cart=7");
        check("cart=7; HttpOnly; Path=/orders; Max-Age=5", "cart=7; HttpOnly; Max-Age=5; Path=/fn/orders");
        check("cart=7; Path=/", "cart=7; Path=/fn");
        check("cart=7;path = /console/ ", "cart=7; Path=/fn/console/");
        check("cart=7; Path=/fn/orders", "cart=7; Path=/fn/orders");
        check("cart=7; Path=/fn", "cart=7; Path=/fn");
        check("cart=7; Path=/fnord", "cart=7; Path=/fn/fnord");
        check("cart=7; Path=/fn/a; PATH=/console/", "cart=7; Path=/fn/console/");
        // Those have the folder of the URL, which the browser takes for that of the console at `/fn`.
        for set in ["cart=7", "cart=7; Path=", "cart=7; Path=console"] {
            check_at("/fn", set, "cart=7; Path=/fn");
            check_at("/fn/", set, "cart=7");
        }
        check_at("/fn", "cart=7; Path=/orders", "cart=7; Path=/fn/orders");
        check("cart=7; Path=", "cart=7");
        check("cart=7; Path", "cart=7");
        check("cart=7; Path=console", "cart=7");
        // Not an attribute.
        check("path=/console/", "path=/console/");
    }

    #[test]
    fn a_function_cannot_take_cookies_of_others_away() {
        let set = [("clear-site-data", "\"*\""), ("set-cookie", "a=1"), ("set-cookie", "b=2; Path=/")];
        let mut headers: HeaderMap =
            set.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).into_iter().collect();
        confine(&mut headers, "/fn/orders");
        assert_eq!(headers.get_all(SET_COOKIE).iter().collect::<Vec<_>>(), ["a=1", "b=2; Path=/fn"]);
        assert_eq!(headers.len(), 2);
    }
}
