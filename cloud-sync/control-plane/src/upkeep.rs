//! What goes by itself: bytes that nothing refers to.

use crate::ControlPlane;
use crate::blobs::BlobError;
use crate::limits;
use crate::store::StoreError;

/// Why it did not.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// The rows.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

impl ControlPlane {
    /// Removes uploads that were given up, and blobs to which no release refers a day after they came. Answers how many blobs went.
    ///
    /// # Errors
    /// When the database or the folder fails.
    pub async fn collect_blobs(&self) -> Result<u64, UpkeepError> {
        let before_ms = self.clock.now_ms().saturating_sub(limits::UNUSED_KEPT_MS);
        self.blobs.remove_unfinished(before_ms).await?;
        let mut removed = 0;
        for (digest, came_ms) in self.blobs.list().await? {
            if came_ms >= before_ms {
                continue;
            }
            // No release begins to refer to it between the look and the removal.
            let _removing = self.referring.write().await;
            if !self.store.refers_to(digest).await? {
                self.blobs.remove(digest).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
