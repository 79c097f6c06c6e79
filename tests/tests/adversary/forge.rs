//! Chains and headers that no constructor would make.

use bincode::{Decode, Encode};
use strongroom_contracts::keys::Domain;
use strongroom_contracts::{Chain, SecretKey, codec};

/// A block with its members in the open; the encoding is that of the contracts' crate.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OpenBlock {
    pub payload: Vec<u8>,
    pub signature: [u8; 64],
}

/// A chain with its members in the open.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OpenChain {
    pub blocks: Vec<OpenBlock>,
}

impl OpenChain {
    pub fn of(chain: &Chain) -> OpenChain {
        codec::decode(&chain.to_bytes().unwrap()).unwrap()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self).unwrap()
    }
}

impl OpenBlock {
    /// Signs anything.
    pub fn signed<T: Encode>(terms: &T, key: &SecretKey, domain: Domain) -> OpenBlock {
        let payload = codec::encode(terms).unwrap();
        let signature = codec::encode(&key.sign(domain, &payload)).unwrap();
        OpenBlock { payload, signature: signature.try_into().unwrap() }
    }
}

/// Puts other bytes in the place of an encoded name (`u64` length, bytes) in a header.
pub fn rename_in_header(header: &[u8], name: &[u8], other: &[u8]) -> Vec<u8> {
    let encoded = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
    let needle = encoded(name);
    let at =
        header.windows(needle.len()).position(|window| window == needle).expect("the name is in the header");
    [&header[..at], &encoded(other), &header[at + needle.len()..]].concat()
}
