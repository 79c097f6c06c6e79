//! The admin door's requests about the undo log.

use strongroom_contracts::{Application, ContractId, DataPath};
use strongroom_protocol::admin::{
    AdminAnswer, AdminRequest, BlastInfo, HistoryInfo, UndoItem, UndoProgress, UndoRequest,
};
use strongroom_protocol::codec::decode_list;

use crate::admin::{AdminClient, AdminError};

/// A part of a file as it was.
#[derive(Clone, Debug)]
pub struct OldPart {
    /// The size of the file.
    pub size: u64,
    /// All of it is as it was.
    pub whole: bool,
    /// From the offset that was asked for; empty at the end.
    pub bytes: Vec<u8>,
}

impl AdminClient {
    /// Has changes taken back. Returns the number of the undo, which goes on by itself.
    ///
    /// # Errors
    /// Any [`AdminError`]; [`AdminError::NotFound`] if the application has changed nothing that could be undone.
    pub fn undo(&mut self, request: UndoRequest) -> Result<ContractId, AdminError> {
        match self.request(&AdminRequest::Undo(request), &[])? {
            (AdminAnswer::UndoBegun { run }, _) => Ok(run),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// How far an undo is; and what became of its paths from `from` on, if it has come to its end.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn undo_progress(
        &mut self,
        run: ContractId,
        from: u64,
    ) -> Result<(UndoProgress, Vec<UndoItem>), AdminError> {
        match self.request(&AdminRequest::UndoProgress { run, from }, &[])? {
            (AdminAnswer::UndoProgress(progress), data) => Ok((progress, self.list(&data)?)),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// All that an undo tells of paths, once it has come to its end.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn undo_items(&mut self, run: ContractId) -> Result<Vec<UndoItem>, AdminError> {
        self.numbered(|client, from| {
            let (progress, page) = client.undo_progress(run, from)?;
            Ok((progress.items, page))
        })
    }

    /// What an application touched since a time (Unix seconds), and who has read that.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn blast(&mut self, application: &Application, since: u64) -> Result<Vec<BlastInfo>, AdminError> {
        self.numbered(|client, from| {
            let request = AdminRequest::Blast { application: application.clone(), since, from };
            match client.request(&request, &[])? {
                (AdminAnswer::Blast { total }, data) => Ok((total, client.list(&data)?)),
                (other, _) => Err(client.unexpected(&other)),
            }
        })
    }

    /// What happened to a path.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn history(&mut self, path: &DataPath) -> Result<Vec<HistoryInfo>, AdminError> {
        self.numbered(|client, from| {
            match client.request(&AdminRequest::History { path: path.clone(), from }, &[])? {
                (AdminAnswer::History { total }, data) => Ok((total, client.list(&data)?)),
                (other, _) => Err(client.unexpected(&other)),
            }
        })
    }

    /// A part of a file as it was at a time (Unix seconds).
    ///
    /// # Errors
    /// Any [`AdminError`]; [`AdminError::NotFound`] if there was none.
    pub fn file_at(&mut self, path: &DataPath, at: u64, offset: u64) -> Result<OldPart, AdminError> {
        match self.request(&AdminRequest::FileAt { path: path.clone(), at, offset }, &[])? {
            (AdminAnswer::FileAt { size, whole }, bytes) => Ok(OldPart { size, whole, bytes }),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    fn list<T: bincode::Decode<()>>(&self, data: &[u8]) -> Result<T, AdminError> {
        decode_list(data).map_err(|error| self.answer(error.to_string()))
    }

    /// A whole list that is asked for from a number on.
    fn numbered<T>(
        &mut self,
        mut ask: impl FnMut(&mut AdminClient, u64) -> Result<(u64, Vec<T>), AdminError>,
    ) -> Result<Vec<T>, AdminError> {
        let mut all = vec![];
        loop {
            let (total, mut page) = ask(self, all.len() as u64)?;
            if page.is_empty() || all.len() as u64 >= total {
                return Ok(all);
            }
            all.append(&mut page);
        }
    }
}
