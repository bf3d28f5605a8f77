//! Which paths a function URL stands for.

use std::fmt;

/// `/orders/{id}/items`: parts that are as they stand, parts that stand for any, and at the end perhaps one that stands for all the
/// rest, `{rest+}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathTemplate {
    segments: Vec<Segment>,
    /// As it was written.
    text: String,
}

// In the order in which they win.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Segment {
    Literal(String),
    Parameter(String),
    Rest(String),
}

/// Why text is not the path of a function URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` is not the path of a function URL: {why}")]
pub struct PathError {
    path: String,
    why: &'static str,
}

impl PathTemplate {
    /// Reads `/orders/{id}`.
    ///
    /// # Errors
    /// When it does not begin with `/`, has an empty part, or a parameter that is malformed or there twice.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let fail = |why| Err(PathError { path: text.to_owned(), why });
        let Some(path) = text.strip_prefix('/') else { return fail("it begins with `/`") };
        if path.is_empty() {
            return Ok(Self { segments: Vec::new(), text: text.to_owned() });
        }
        let mut segments: Vec<Segment> = Vec::new();
        for part in path.split('/') {
            if matches!(segments.last(), Some(Segment::Rest(_))) {
                return fail("`{NAME+}` stands for all the rest, so nothing can follow");
            }
            let segment = match part.strip_prefix('{').map(|name| name.strip_suffix('}')) {
                Some(None) => return fail("a parameter is a whole part, `{NAME}`"),
                Some(Some(name)) => {
                    let (name, is_rest) = name.strip_suffix('+').map_or((name, false), |name| (name, true));
                    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"_-.".contains(&c);
                    if name.is_empty() || !name.bytes().all(allowed) {
                        return fail("a parameter's name has letters, digits, `_`, `-` and `.`");
                    }
                    if segments.iter().any(|segment| segment.parameter() == Some(name)) {
                        return fail("it has two parameters of one name");
                    }
                    if is_rest { Segment::Rest(name.to_owned()) } else { Segment::Parameter(name.to_owned()) }
                }
                None if part.is_empty() => return fail("it has an empty part"),
                None if part.contains(['{', '}']) => return fail("a parameter is a whole part, `{NAME}`"),
                None if part.contains(['?', '#', '%', ' ']) || part.contains(char::is_control) => {
                    return fail("its parts are written as they are, without `?`, `#`, `%` and spaces");
                }
                None => Segment::Literal(part.to_owned()),
            };
            segments.push(segment);
        }
        Ok(Self { segments, text: text.to_owned() })
    }

    /// What its parameters are in `path`, as it came in a request; `None` when it is another path.
    pub fn parameters(&self, path: &str) -> Option<Vec<(String, String)>> {
        let mut rest = path.strip_prefix('/').unwrap_or(path);
        let mut found = Vec::new();
        for (i, segment) in self.segments.iter().enumerate() {
            if i > 0 {
                rest = rest.strip_prefix('/')?;
            }
            let end =
                if matches!(segment, Segment::Rest(_)) { rest.len() } else { rest.find('/').unwrap_or(rest.len()) };
            let (part, after) = rest.split_at(end);
            let part = decode(part);
            match segment {
                Segment::Literal(literal) if *literal == part => {}
                Segment::Parameter(name) | Segment::Rest(name) if !part.is_empty() => found.push((name.clone(), part)),
                _ => return None,
            }
            rest = after;
        }
        rest.is_empty().then_some(found)
    }

    /// Whether both stand for the same paths.
    pub fn is_alike(&self, other: &Self) -> bool {
        let alike = |(one, other): (&Segment, &Segment)| match (one, other) {
            (Segment::Literal(one), Segment::Literal(other)) => one == other,
            _ => one.rank() == other.rank(),
        };
        self.segments.len() == other.segments.len() && self.segments.iter().zip(&other.segments).all(alike)
    }

    /// The one that says more of a path comes first.
    pub(super) fn ranks(&self) -> Vec<u8> {
        self.segments.iter().map(Segment::rank).collect()
    }
}

impl Segment {
    const fn rank(&self) -> u8 {
        match self {
            Self::Literal(_) => 0,
            Self::Parameter(_) => 1,
            Self::Rest(_) => 2,
        }
    }

    fn parameter(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Parameter(name) | Self::Rest(name) => Some(name),
        }
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `%20` → a space. What is not an escape stays; bytes that are not UTF-8 become U+FFFD.
pub(super) fn decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|c| char::from(*c).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high << 4) | low);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(template: &str, path: &str, expected: Option<&[(&str, &str)]>) {
        let found = PathTemplate::parse(template).unwrap().parameters(path);
        let expected = expected.map(|p| p.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect());
        assert_eq!(found, expected, "{path} by {template}");
    }

    #[test]
    fn a_path_is_matched_part_by_part() {
        check("/", "/", Some(&[]));
        check("/", "", Some(&[]));
        check("/", "/a", None);
        check("/orders", "/orders", Some(&[]));
        check("/orders", "/orders/", None);
        check("/orders", "/order", None);
        check("/orders", "/orders/7", None);
        check("/orders/{id}", "/orders/7", Some(&[("id", "7")]));
        check("/orders/{id}", "/orders/", None);
        check("/orders/{id}", "/orders/7/items", None);
        check("/orders/{id}/items/{item}", "/orders/7/items/8", Some(&[("id", "7"), ("item", "8")]));
        check("/files/{path+}", "/files/a/b", Some(&[("path", "a/b")]));
        check("/files/{path+}", "/files/", None);
        check("/{all+}", "/a", Some(&[("all", "a")]));
    }

    #[test]
    fn what_is_escaped_is_read_as_it_was_meant() {
        check("/orders/{id}", "/orders/a%20b%2Fc", Some(&[("id", "a b/c")]));
        check("/ä", "/%C3%A4", Some(&[]));
        check("/orders/{id}", "/orders/100%", Some(&[("id", "100%")]));
        check("/orders/{id}", "/orders/%zz%4", Some(&[("id", "%zz%4")]));
        check("/orders/{id}", "/orders/%FF", Some(&[("id", "\u{fffd}")]));
        // Not a way around: what is escaped is no separator.
        check("/orders/{id}", "/orders%2F7", None);
    }

    #[test]
    fn a_path_reads_back_as_it_was_written() {
        for text in ["/", "/a", "/a/{b}/c", "/{a+}", "/v1.0/~me/a:b@c"] {
            assert_eq!(PathTemplate::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_path_that_is_malformed_is_refused() {
        for text in [
            "", "a", "//", "/a//b", "/a/", "/{}", "/{a", "/a}", "/{a}b", "/{a+}/b", "/{a}/{a}", "/a?b", "/a#b", "/a b",
            "/%41", "/{a b}",
        ] {
            assert!(PathTemplate::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_that_differ_by_the_names_of_parameters_only_are_alike() {
        let alike =
            |one: &str, other: &str| PathTemplate::parse(one).unwrap().is_alike(&PathTemplate::parse(other).unwrap());
        assert!(alike("/orders/{id}", "/orders/{order}"));
        assert!(!alike("/orders/{id}", "/orders/{id+}"));
        assert!(!alike("/orders/{id}", "/orders/new"));
        assert!(!alike("/orders/{id}", "/orders"));
    }
}
