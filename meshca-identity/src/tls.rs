//! How strict a workload is: what MeshTLS and the classic backend say.
