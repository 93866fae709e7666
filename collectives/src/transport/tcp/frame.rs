//! What precedes the data of a passage, in each direction of each connection that it uses.
//!
//! Both ends compare it before the data is touched. Lengths are never read from the wire: they follow from the call,
//! which both ends have.

use crate::call::{CALL_BYTES, Call, Kind};
use crate::element::DType;
use crate::error::{Error, LossCause};

/// The call, the how many-eth passage of this direction it is, and the form in which elements travel.
pub(super) const HEADER: usize = CALL_BYTES + 8;

/// Bytes that count passages: enough for one a microsecond for nine years.
const COUNT: usize = 6;

/// In place of a header: the rank has left. No call looks like it.
pub(super) const GOODBYE: [u8; HEADER] = [0xff; HEADER];

/// Ranks that reduce over shared memory first may have another dtype for the network than the call's.
pub(super) fn header(call: &Call, passage: u64, dtype: DType, compressed: bool) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..CALL_BYTES].copy_from_slice(&call.encode());
    header[CALL_BYTES..CALL_BYTES + COUNT].copy_from_slice(&passage.to_le_bytes()[..COUNT]);
    header[CALL_BYTES + COUNT..].copy_from_slice(&[dtype as u8, compressed.into()]);
    header
}

/// What is wrong with a header of `rank` that is not the expected one.
pub(super) fn complaint(rank: usize, received: &[u8; HEADER], call: &Call) -> Error {
    if *received == GOODBYE {
        return Error::PeerLeft { rank };
    }
    match called(received) {
        Some(theirs) => Error::mismatch(rank, &theirs, call),
        None => Error::PeerLost { rank, cause: LossCause::InvalidMessage },
    }
}

fn called(received: &[u8; HEADER]) -> Option<Call> {
    received.first_chunk::<CALL_BYTES>().and_then(Call::decode)
}

/// The call of a header, where it is another call of the same operation of all ranks.
pub(super) fn difference(received: &[u8; HEADER], call: &Call) -> Option<Call> {
    let of_all = |call: &Call| !matches!(call.kind, Kind::Message { .. });
    called(received)
        .filter(|theirs| theirs != call && theirs.sequence == call.sequence && of_all(theirs) && of_all(call))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_in_place_of_a_header_are_an_error(bytes in proptest::array::uniform32(any::<u8>())) {
            let call = Call { sequence: 3, kind: Kind::Barrier, dtype: DType::U8, count: 0 };
            let error = complaint(5, &bytes, &call);
            prop_assert_eq!(error.rank(), Some(5));
        }
    }

    #[test]
    fn a_goodbye_is_no_call() {
        let call = Call { sequence: 3, kind: Kind::Barrier, dtype: DType::U8, count: 0 };
        assert_eq!(complaint(5, &GOODBYE, &call), Error::PeerLeft { rank: 5 });
        let Error::Mismatch { rank: 5, .. } = complaint(5, &header(&call, 4, DType::U8, false), &call) else {
            unreachable!("another passage is a mismatch")
        };
    }
}
