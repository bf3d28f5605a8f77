//! Events as other platforms shape them, for handlers that were written for those.

pub(super) mod s3;
