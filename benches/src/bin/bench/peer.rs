//! Network file systems with servers of their own: how each is brought up in the lab's guests, by a script.

use crate::target::{Mount, mount};

/// A network file system that a user could run instead.
pub(crate) struct Peer {
    /// Answers `serve ADDRESS DIRECTORY` in the storage guest, which prints what clients need, and in the app guest
    /// `join`, which reads that, and `mount ADDRESS POINT`.
    pub(crate) script: &'static str,
    /// The ports of its servers.
    pub(crate) ports: &'static [std::ops::RangeInclusive<u16>],
    /// Programs, and the Debian packages that they are in.
    pub(crate) needs: &'static [(&'static str, &'static str)],
}

/// GlusterFS, one brick, TLS.
pub(crate) const GLUSTERFS: Peer = Peer {
    script: include_str!("../../../peers/glusterfs.sh"),
    ports: &[24007..=24008, 49152..=49160, 55555..=55565],
    needs: &[("glusterd", "glusterfs-server"), ("glusterfs", "glusterfs-client"), ("openssl", "openssl")],
};

/// CephFS: one of each daemon, messenger 2 in secure mode.
pub(crate) const CEPHFS: Peer = Peer {
    script: include_str!("../../../peers/cephfs.sh"),
    ports: &[3300..=3300, 6800..=6840],
    needs: &[
        ("ceph-mon", "ceph-mon"),
        ("ceph-mgr", "ceph-mgr"),
        ("ceph-osd", "ceph-osd"),
        ("ceph-mds", "ceph-mds"),
        ("ceph", "ceph-common"),
        ("ceph-fuse", "ceph-fuse"),
    ],
};

/// MooseFS 3: one master, one chunk server.
pub(crate) const MOOSEFS: Peer = Peer {
    script: include_str!("../../../peers/moosefs.sh"),
    ports: &[9419..=9422],
    needs: &[
        ("mfsmaster", "moosefs-master"),
        ("mfschunkserver", "moosefs-chunkserver"),
        ("mfsmount", "moosefs-client"),
    ],
};

impl Peer {
    /// How the app guest mounts it at `point`.
    pub(crate) fn mount(&self, point: &str) -> Mount {
        mount(&["sh", "-c", self.script, "peer", "mount", crate::house::STORAGE_ADDRESS, point], point)
    }
}
