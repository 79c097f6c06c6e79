//! The engine's side of the undo log, for the admin door and the housekeeping.

use std::os::fd::OwnedFd;

use super::Engine;
use crate::undo::{
    BlastItem, FileAtError, Filter, HistoryItem, Item, Overrun, Progress, RunId, Undo, UndoError,
};

impl Engine {
    fn undo(&self) -> Result<&Undo, UndoError> {
        self.shared.undo.as_deref().ok_or(UndoError::Off)
    }

    /// Whether changes are kept at all.
    pub fn keeps_undo(&self) -> bool {
        self.shared.undo.is_some()
    }

    /// Calls this when an application outruns its undo space. The call must not wait for operations.
    pub fn on_overrun(&self, call: impl Fn(Overrun) + Send + Sync + 'static) {
        if let Some(undo) = &self.shared.undo {
            undo.on_overrun(Box::new(call));
        }
    }

    /// Notes an undo that is asked for. It does nothing until [`Engine::carry_undo`].
    ///
    /// # Errors
    /// [`UndoError::Off`], [`UndoError::Unknown`].
    pub fn begin_undo(&self, filter: Filter, dry: bool) -> Result<RunId, UndoError> {
        self.undo()?.begin(filter, dry)
    }

    /// Carries an undo out; takes as long as it takes.
    pub fn carry_undo(&self, run: RunId) {
        if let Some(undo) = &self.shared.undo {
            undo.carry(&self.shared, run);
        }
    }

    /// The undos that a crash interrupted, to be carried out now.
    ///
    /// # Errors
    /// [`UndoError`] if they cannot be read.
    pub fn interrupted_undos(&self) -> Result<Vec<RunId>, UndoError> {
        self.shared.undo.as_ref().map_or(Ok(vec![]), |undo| undo.interrupted())
    }

    /// How far an undo is, and what became of some of its paths. `None`: there is no such undo in this process.
    pub fn undo_progress(&self, run: RunId, from: usize, most: usize) -> Option<(Progress, Vec<Item>)> {
        self.shared.undo.as_ref()?.run(run).map(|run| run.look(from, most))
    }

    /// What happened to a path (from the data root), oldest first.
    ///
    /// # Errors
    /// [`UndoError`].
    pub fn history(&self, path: &[u8]) -> Result<Vec<HistoryItem>, UndoError> {
        self.undo()?.history(&self.shared.tree, path)
    }

    /// A file as it was at a time (microseconds since the Unix epoch), and whether that is all of it.
    ///
    /// # Errors
    /// [`FileAtError`].
    pub fn file_at(&self, path: &[u8], at_us: u64) -> Result<(OwnedFd, bool), FileAtError> {
        self.undo()?.file_at(&self.shared.tree, path, at_us)
    }

    /// What an application touched since a time, and who has read that.
    ///
    /// # Errors
    /// [`UndoError`].
    pub fn blast(&self, application: &str, since_us: u64) -> Result<Vec<BlastItem>, UndoError> {
        self.undo()?.blast(&self.shared.tree, application, since_us)
    }

    /// Writes what lags behind, many times a second.
    pub fn tick_undo(&self) {
        if let Some(undo) = &self.shared.undo {
            undo.tick();
        }
    }

    /// Brings pre-images to the disk, about once a second.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync_undo(&self) -> std::io::Result<()> {
        Ok(self.shared.undo.as_ref().map_or(Ok(()), |undo| undo.sync())?)
    }

    /// Forgets what is over its window, slowly.
    ///
    /// # Errors
    /// Those of the vault's file system.
    pub fn expire_undo(&self) -> std::io::Result<()> {
        Ok(self.shared.undo.as_ref().map_or(Ok(()), |undo| undo.expire(true))?)
    }
}
