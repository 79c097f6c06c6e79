//! The one table from what goes wrong to what an application sees (errno(3)).

use fuser::Errno;
use strongroom_protocol::name::NameError;
use strongroom_protocol::reply::Failure;

/// Why a call ended without an answer of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The gateway answered with a failure.
    Failed(Failure),
    /// The contract is void; there is no session.
    Void,
    /// The deadline of the mount passed while the gateway was away.
    Deadline,
    /// The calling process is being killed, or a signal ended its waiting for a lock.
    Interrupted,
    /// The session was lost while the call was under way: whether it was carried out cannot be known.
    Lost,
    /// The client is shutting down.
    Closing,
    /// The gateway's answer makes no sense.
    Protocol,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failed(failure)
    }
}

/// The error number that an application sees.
pub fn errno(ended: Ended) -> Errno {
    match ended {
        Ended::Failed(failure) => of_failure(failure),
        Ended::Void => Errno::EACCES,
        Ended::Deadline => Errno::ETIMEDOUT,
        Ended::Interrupted => Errno::EINTR,
        Ended::Lost | Ended::Protocol => Errno::EIO,
        Ended::Closing => Errno::ENOTCONN,
    }
}

fn of_failure(failure: Failure) -> Errno {
    match failure {
        Failure::Errno(number) => Errno::from_i32(i32::from(number)),
        Failure::Denied { .. } | Failure::Fenced => Errno::EACCES,
        Failure::Quota => Errno::EDQUOT,
        Failure::CrossGrant => Errno::EXDEV,
        Failure::Stale => Errno::ESTALE,
        Failure::BadHandle => Errno::EBADF,
        Failure::TooMany => Errno::ENFILE,
        // Both are dealt with below the file system; if one comes through all the same, trying again is right.
        Failure::Grace => Errno::EAGAIN,
        Failure::BadSlot => Errno::EIO,
        Failure::Malformed => Errno::EINVAL,
    }
}

/// The error number for a name that cannot be.
pub fn of_name(error: NameError) -> Errno {
    match error {
        NameError::TooLong => Errno::ENAMETOOLONG,
        NameError::Invalid => Errno::EINVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_contracts::Rights;

    #[test]
    fn the_promises_of_the_documents() {
        let seen = |failure| errno(Ended::Failed(failure));
        assert_eq!(seen(Failure::Denied { missing: Rights::READ_ONLY }), Errno::EACCES);
        assert_eq!(seen(Failure::Fenced), Errno::EACCES);
        assert_eq!(errno(Ended::Void), Errno::EACCES);
        assert_eq!(seen(Failure::Quota), Errno::EDQUOT);
        assert_eq!(seen(Failure::CrossGrant), Errno::EXDEV);
        assert_eq!(seen(Failure::Errno(libc::ENOTEMPTY as u16)), Errno::ENOTEMPTY);
        assert_eq!(errno(Ended::Deadline), Errno::ETIMEDOUT);
    }

    #[test]
    fn no_failure_becomes_success() {
        assert_eq!(errno(Ended::Failed(Failure::Errno(0))), Errno::EIO);
    }
}
