//! How many connections each address has: one that opens all that it can leaves places for the others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// A count for each address that has a connection; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A place that is taken until it is dropped.
#[derive(Debug)]
pub struct Place {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    /// One more connection of `address`, unless it has `most` already.
    pub fn take(&self, address: IpAddr, most: usize) -> Option<Place> {
        let address = network(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { addresses: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Whoever has one address of IPv6 has all of its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_once_it_was_left() {
        let addresses = Addresses::default();
        let take = |address: &str| addresses.take(address.parse().unwrap(), 2);
        let (first, second) = (take("192.0.2.7"), take("::ffff:192.0.2.7"));
        assert!(first.is_some() && second.is_some() && take("192.0.2.7").is_none());
        assert!(take("192.0.2.8").is_some(), "others have their own");
        drop(first);
        assert!(take("192.0.2.7").is_some());
        drop(second);
        assert!(addresses.0.lock().unwrap().is_empty(), "nothing is left of those who went");
        let neighbours = [take("2001:db8::1"), take("2001:db8::2")];
        assert!(neighbours.iter().all(Option::is_some) && take("2001:db8::3").is_none());
    }
}
