//! Names the place in a JSON text that an error is about.

enum Step<'a> {
    Key(&'a [u8]),
    Index(usize),
}

/// The value that the 1-based `line` and `column` fall into, such as `readings[2].celsius`; empty for the whole text.
pub(crate) fn path(json: &[u8], line: usize, column: usize) -> String {
    let lines_before: usize =
        json.split_inclusive(|&byte| byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    let json = &json[..json.len().min(lines_before + column)];

    let mut steps: Vec<Step<'_>> = Vec::new();
    let mut string: &[u8] = b"";
    let mut at = 0;
    while at < json.len() {
        match json[at] {
            b'{' => steps.push(Step::Key(b"")),
            b'[' => steps.push(Step::Index(0)),
            b'}' | b']' => drop(steps.pop()),
            b'"' => {
                let rest = &json[at + 1..];
                string = &rest[..string_length(rest)];
                at += string.len() + 1;
            }
            b':' => {
                if let Some(Step::Key(key)) = steps.last_mut() {
                    *key = string;
                }
            }
            b',' => {
                if let Some(Step::Index(index)) = steps.last_mut() {
                    *index += 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    written(&steps)
}

/// Bytes up to the closing quote.
fn string_length(text: &[u8]) -> usize {
    let mut at = 0;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at.min(text.len())
}

fn written(steps: &[Step<'_>]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Index(index) => path.extend(["[", &index.to_string(), "]"]),
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(&String::from_utf8_lossy(key));
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::path;

    #[track_caller]
    fn check(json: &str, expected: &str) {
        let column = json.find('!').unwrap();
        assert_eq!(path(json.replace('!', "").as_bytes(), 1, column), expected, "{json}");
    }

    #[test]
    fn a_place_is_named_by_its_keys_and_indexes() {
        check(r#"{"a":1!}"#, "a");
        check(r#"{"a":{"b":[0,{"c":true!"#, "a.b[1].c");
        check(r#"{"a":{"b":1}!"#, "a");
        check(r#"{"a":[1,2],"b":"x\",{\"y"!"#, "b");
        check(r#"[[],[7!"#, "[1][0]");
        check("7!", "");
    }
}
