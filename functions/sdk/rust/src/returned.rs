//! What a handler returned becomes the bytes of its result. Only `#[handler]` uses this.

#![allow(missing_docs, reason = "hidden")]

use serde::Serialize;

use crate::emit::{Message, json, publish};
use crate::failure::Failure;

/// What a handler returned, on its way to being bytes. The methods of one type win over the trait that is for all.
#[derive(Debug)]
pub struct Returned<T>(pub T);

impl Returned<Vec<Message>> {
    pub fn into_result(self) -> Result<Vec<u8>, Failure> {
        self.0.into_iter().try_for_each(publish)?;
        Ok(Vec::new())
    }
}

impl Returned<Message> {
    pub fn into_result(self) -> Result<Vec<u8>, Failure> {
        publish(self.0)?;
        Ok(Vec::new())
    }
}

impl Returned<Vec<u8>> {
    pub fn into_result(self) -> Result<Vec<u8>, Failure> {
        Ok(self.0)
    }
}

impl Returned<()> {
    pub fn into_result(self) -> Result<Vec<u8>, Failure> {
        Ok(Vec::new())
    }
}

impl<T: Serialize> Returned<Option<T>> {
    pub fn into_result(self) -> Result<Vec<u8>, Failure> {
        self.0.map_or(Ok(Vec::new()), |value| json(&value))
    }
}

pub trait Json {
    fn into_result(self) -> Result<Vec<u8>, Failure>;
}

impl<T: Serialize> Json for &Returned<T> {
    fn into_result(self) -> Result<Vec<u8>, Failure> {
        json(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Host;

    #[test]
    fn what_a_handler_returns_becomes_bytes() {
        let mut host = Host::new();
        let bytes = |result: Result<Vec<u8>, Failure>| String::from_utf8(result.unwrap()).unwrap();
        assert_eq!(bytes(Returned("text").into_result()), "\"text\"");
        assert_eq!(bytes(Returned(Some(7)).into_result()), "7");
        assert_eq!(bytes(Returned(None::<u8>).into_result()), "");
        assert_eq!(bytes(Returned(()).into_result()), "");
        assert_eq!(bytes(Returned(b"raw".to_vec()).into_result()), "raw");

        let message = Message::new("a/b", "1").retained();
        let result = host.run(|| Returned(vec![message.clone(), message.clone()]).into_result());
        assert_eq!(bytes(result), "");
        assert_eq!(host.published(), [message.clone(), message]);
    }
}
