//! What `nccl.h` and `cuda.h` lay down: layouts, numbers and functions. The unit test compares all numbers with what
//! a C compiler makes of the headers in the NCCL wheel.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::element::DType;
use crate::nccl::loading::functions;
use crate::reduce::ReduceOp;

pub(super) const UNIQUE_ID_BYTES: usize = 128;

/// Passed by value.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RawUniqueId(pub(super) [u8; UNIQUE_ID_BYTES]);

/// The configuration as version 2.28 knows it. A library reads as much of it as `size` says and it knows itself, and
/// takes fields that are younger than `version` as not given; the fields before `net_name` are as old as 2.17.
#[derive(Debug)]
#[repr(C)]
pub(super) struct RawConfig {
    pub(super) size: usize,
    pub(super) magic: c_uint,
    pub(super) version: c_uint,
    pub(super) blocking: c_int,
    pub(super) cga_cluster_size: c_int,
    pub(super) min_ctas: c_int,
    pub(super) max_ctas: c_int,
    pub(super) net_name: *const c_char,
    pub(super) split_share: c_int,
    pub(super) traffic_class: c_int,
    pub(super) comm_name: *const c_char,
    pub(super) collnet_enable: c_int,
    pub(super) cta_policy: c_int,
    pub(super) shrink_share: c_int,
    pub(super) nvls_ctas: c_int,
    pub(super) channels_per_net_peer: c_int,
    pub(super) nvlink_centric_sched: c_int,
}

pub(super) const CONFIG_MAGIC: c_uint = 0xcafe_beef;
/// The version whose layout [`RawConfig`] has.
pub(super) const CONFIG_VERSION: c_uint = 22_800;
pub(super) const UNDEFINED: c_int = c_int::MIN;

impl RawConfig {
    /// Nothing given but that no call may block.
    pub(super) fn nonblocking() -> RawConfig {
        RawConfig {
            size: size_of::<RawConfig>(),
            magic: CONFIG_MAGIC,
            version: CONFIG_VERSION,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
            traffic_class: UNDEFINED,
            comm_name: std::ptr::null(),
            collnet_enable: UNDEFINED,
            cta_policy: UNDEFINED,
            shrink_share: UNDEFINED,
            nvls_ctas: UNDEFINED,
            channels_per_net_peer: UNDEFINED,
            nvlink_centric_sched: UNDEFINED,
        }
    }
}

pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
pub(super) const SPLIT_NOCOLOR: c_int = -1;

/// The name of a result in NCCL's header.
pub(super) const fn result_name(code: c_int) -> &'static str {
    match code {
        0 => "ncclSuccess",
        1 => "ncclUnhandledCudaError",
        2 => "ncclSystemError",
        3 => "ncclInternalError",
        4 => "ncclInvalidArgument",
        5 => "ncclInvalidUsage",
        6 => "ncclRemoteError",
        7 => "ncclInProgress",
        _ => "unknown result",
    }
}

/// NCCL's number of a dtype, where it has that type.
pub(super) const fn data_type(dtype: DType) -> Option<c_int> {
    Some(match dtype {
        DType::I8 => 0,
        DType::U8 => 1,
        DType::I32 => 2,
        DType::I64 => 4,
        DType::F16 => 6,
        DType::F32 => 7,
        DType::F64 => 8,
        DType::BF16 => 9,
        DType::I16 => return None,
    })
}

pub(super) const fn reduction(op: ReduceOp) -> c_int {
    match op {
        ReduceOp::Sum => 0,
        ReduceOp::Product => 1,
        ReduceOp::Max => 2,
        ReduceOp::Min => 3,
        ReduceOp::Mean => 4,
    }
}

/// `ncclComm_t`.
pub(super) type RawComm = *mut c_void;
pub(super) type CudaStream = *mut c_void;

functions! {
    /// What is used of libnccl.
    pub(super) struct NcclFunctions {
        get_version: "ncclGetVersion" = fn(*mut c_int) -> c_int,
        get_unique_id: "ncclGetUniqueId" = fn(*mut RawUniqueId) -> c_int,
        get_error_string: "ncclGetErrorString" = fn(c_int) -> *const c_char,
        get_last_error: "ncclGetLastError" = fn(RawComm) -> *const c_char,
        comm_init_rank_config: "ncclCommInitRankConfig"
            = fn(*mut RawComm, c_int, RawUniqueId, c_int, *mut RawConfig) -> c_int,
        comm_finalize: "ncclCommFinalize" = fn(RawComm) -> c_int,
        comm_destroy: "ncclCommDestroy" = fn(RawComm) -> c_int,
        comm_abort: "ncclCommAbort" = fn(RawComm) -> c_int,
        comm_split: "ncclCommSplit" = fn(RawComm, c_int, c_int, *mut RawComm, *mut RawConfig) -> c_int,
        comm_get_async_error: "ncclCommGetAsyncError" = fn(RawComm, *mut c_int) -> c_int,
        comm_count: "ncclCommCount" = fn(RawComm, *mut c_int) -> c_int,
        comm_user_rank: "ncclCommUserRank" = fn(RawComm, *mut c_int) -> c_int,
        reduce: "ncclReduce"
            = fn(*const c_void, *mut c_void, usize, c_int, c_int, c_int, RawComm, CudaStream) -> c_int,
        broadcast: "ncclBroadcast" = fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, CudaStream) -> c_int,
        all_reduce: "ncclAllReduce"
            = fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, CudaStream) -> c_int,
        reduce_scatter: "ncclReduceScatter"
            = fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, CudaStream) -> c_int,
        all_gather: "ncclAllGather" = fn(*const c_void, *mut c_void, usize, c_int, RawComm, CudaStream) -> c_int,
        send: "ncclSend" = fn(*const c_void, usize, c_int, c_int, RawComm, CudaStream) -> c_int,
        recv: "ncclRecv" = fn(*mut c_void, usize, c_int, c_int, RawComm, CudaStream) -> c_int,
        group_start: "ncclGroupStart" = fn() -> c_int,
        group_end: "ncclGroupEnd" = fn() -> c_int;
        // Since 2.19.
        comm_register: "ncclCommRegister" = fn(RawComm, *mut c_void, usize, *mut *mut c_void) -> c_int,
        comm_deregister: "ncclCommDeregister" = fn(RawComm, *mut c_void) -> c_int,
        mem_alloc: "ncclMemAlloc" = fn(*mut *mut c_void, usize) -> c_int,
        mem_free: "ncclMemFree" = fn(*mut c_void) -> c_int,
    }
}

pub(super) type CuDevice = c_int;
pub(super) type CuContext = *mut c_void;
pub(super) type CuEvent = *mut c_void;
pub(super) type CuDevicePointer = u64;

pub(super) const CUDA_NOT_READY: c_int = 600;
pub(super) const ATTRIBUTE_MULTIPROCESSORS: c_int = 16;
pub(super) const ATTRIBUTE_CAPABILITY_MAJOR: c_int = 75;
pub(super) const ATTRIBUTE_CAPABILITY_MINOR: c_int = 76;
pub(super) const P2P_PERFORMANCE_RANK: c_int = 1;
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;

functions! {
    /// What is used of libcuda.
    pub(super) struct CudaFunctions {
        init: "cuInit" = fn(c_uint) -> c_int,
        driver_get_version: "cuDriverGetVersion" = fn(*mut c_int) -> c_int,
        get_error_name: "cuGetErrorName" = fn(c_int, *mut *const c_char) -> c_int,
        get_error_string: "cuGetErrorString" = fn(c_int, *mut *const c_char) -> c_int,
        device_get_count: "cuDeviceGetCount" = fn(*mut c_int) -> c_int,
        device_get: "cuDeviceGet" = fn(*mut CuDevice, c_int) -> c_int,
        device_get_name: "cuDeviceGetName" = fn(*mut c_char, c_int, CuDevice) -> c_int,
        device_get_uuid: "cuDeviceGetUuid" = fn(*mut [u8; 16], CuDevice) -> c_int,
        device_get_pci_bus_id: "cuDeviceGetPCIBusId" = fn(*mut c_char, c_int, CuDevice) -> c_int,
        device_get_attribute: "cuDeviceGetAttribute" = fn(*mut c_int, c_int, CuDevice) -> c_int,
        device_total_mem: "cuDeviceTotalMem_v2" = fn(*mut usize, CuDevice) -> c_int,
        device_can_access_peer: "cuDeviceCanAccessPeer" = fn(*mut c_int, CuDevice, CuDevice) -> c_int,
        device_get_p2p_attribute: "cuDeviceGetP2PAttribute" = fn(*mut c_int, c_int, CuDevice, CuDevice) -> c_int,
        primary_context_retain: "cuDevicePrimaryCtxRetain" = fn(*mut CuContext, CuDevice) -> c_int,
        primary_context_release: "cuDevicePrimaryCtxRelease_v2" = fn(CuDevice) -> c_int,
        context_set_current: "cuCtxSetCurrent" = fn(CuContext) -> c_int,
        stream_create: "cuStreamCreate" = fn(*mut CudaStream, c_uint) -> c_int,
        stream_query: "cuStreamQuery" = fn(CudaStream) -> c_int,
        stream_synchronize: "cuStreamSynchronize" = fn(CudaStream) -> c_int,
        stream_destroy: "cuStreamDestroy_v2" = fn(CudaStream) -> c_int,
        event_create: "cuEventCreate" = fn(*mut CuEvent, c_uint) -> c_int,
        event_record: "cuEventRecord" = fn(CuEvent, CudaStream) -> c_int,
        event_query: "cuEventQuery" = fn(CuEvent) -> c_int,
        event_elapsed_time: "cuEventElapsedTime" = fn(*mut f32, CuEvent, CuEvent) -> c_int,
        event_destroy: "cuEventDestroy_v2" = fn(CuEvent) -> c_int,
        mem_alloc: "cuMemAlloc_v2" = fn(*mut CuDevicePointer, usize) -> c_int,
        mem_free: "cuMemFree_v2" = fn(CuDevicePointer) -> c_int,
        copy_to_device: "cuMemcpyHtoD_v2" = fn(CuDevicePointer, *const c_void, usize) -> c_int,
        copy_to_host: "cuMemcpyDtoH_v2" = fn(*mut c_void, CuDevicePointer, usize) -> c_int;
        // Since 11.4, and the only one that tells parts of a divided GPU apart.
        device_get_uuid_v2: "cuDeviceGetUuid_v2" = fn(*mut [u8; 16], CuDevice) -> c_int,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use std::mem::offset_of;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// The folders of the NCCL wheel and of CUDA's headers beside it.
    fn wheel() -> (std::path::PathBuf, std::path::PathBuf) {
        let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/lib");
        let found = environment.read_dir().ok().and_then(|entries| {
            let mut packages = entries.flatten().map(|entry| entry.path().join("site-packages/nvidia"));
            packages.find(|folder| folder.join("nccl/include/nccl.h").exists())
        });
        let folder = found.unwrap_or_else(|| panic!("no NCCL wheel under {}: run make python", environment.display()));
        (folder.join("nccl"), folder.join("cu13"))
    }

    /// Prints, for each expression, its value as the C compiler sees it.
    fn c_values(expressions: &[String]) -> Vec<i64> {
        let (nccl, cuda) = wheel();
        let lines: String =
            expressions.iter().map(|value| format!("printf(\"%lld\\n\", (long long)({value}));\n")).collect();
        let source = format!(
            "#include <stddef.h>\n#include <stdio.h>\n#include <cuda.h>\n#include <nccl.h>\n\
             int main(void) {{ static const ncclConfig_t config = NCCL_CONFIG_INITIALIZER; (void)config;\n{lines}}}\n"
        );
        let folder = std::env::temp_dir().join(format!("muster-nccl-layout-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (file, program) = (folder.join("layout.c"), folder.join("layout"));
        std::fs::write(&file, source).unwrap();
        let mut compile = Command::new("gcc");
        let stubs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl/include");
        compile.arg("-I").arg(stubs).arg("-I").arg(nccl.join("include")).arg("-I").arg(cuda.join("include"));
        let compiled = compile.arg("-o").arg(&program).arg(&file).output().expect("gcc is needed");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let output = Command::new(&program).output().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    }

    #[test]
    fn layouts_and_numbers_are_those_of_the_headers() {
        let types = [
            (DType::I8, "ncclInt8"),
            (DType::U8, "ncclUint8"),
            (DType::I32, "ncclInt32"),
            (DType::I64, "ncclInt64"),
            (DType::F16, "ncclFloat16"),
            (DType::F32, "ncclFloat32"),
            (DType::F64, "ncclFloat64"),
            (DType::BF16, "ncclBfloat16"),
        ];
        let operations = [
            (ReduceOp::Sum, "ncclSum"),
            (ReduceOp::Product, "ncclProd"),
            (ReduceOp::Max, "ncclMax"),
            (ReduceOp::Min, "ncclMin"),
            (ReduceOp::Mean, "ncclAvg"),
        ];
        let field = |name: &str| format!("offsetof(ncclConfig_t, {name})");
        let mut expected: Vec<(String, i64)> = vec![
            ("sizeof(ncclUniqueId)".into(), size_of::<RawUniqueId>() as i64),
            ("_Alignof(ncclUniqueId)".into(), align_of::<RawUniqueId>() as i64),
            ("sizeof(ncclConfig_t)".into(), size_of::<RawConfig>() as i64),
            (field("size"), offset_of!(RawConfig, size) as i64),
            (field("magic"), offset_of!(RawConfig, magic) as i64),
            (field("version"), offset_of!(RawConfig, version) as i64),
            (field("blocking"), offset_of!(RawConfig, blocking) as i64),
            (field("cgaClusterSize"), offset_of!(RawConfig, cga_cluster_size) as i64),
            (field("minCTAs"), offset_of!(RawConfig, min_ctas) as i64),
            (field("maxCTAs"), offset_of!(RawConfig, max_ctas) as i64),
            (field("netName"), offset_of!(RawConfig, net_name) as i64),
            (field("splitShare"), offset_of!(RawConfig, split_share) as i64),
            (field("trafficClass"), offset_of!(RawConfig, traffic_class) as i64),
            (field("commName"), offset_of!(RawConfig, comm_name) as i64),
            (field("collnetEnable"), offset_of!(RawConfig, collnet_enable) as i64),
            (field("CTAPolicy"), offset_of!(RawConfig, cta_policy) as i64),
            (field("shrinkShare"), offset_of!(RawConfig, shrink_share) as i64),
            (field("nvlsCTAs"), offset_of!(RawConfig, nvls_ctas) as i64),
            (field("nChannelsPerNetPeer"), offset_of!(RawConfig, channels_per_net_peer) as i64),
            (field("nvlinkCentricSched"), offset_of!(RawConfig, nvlink_centric_sched) as i64),
            ("config.magic".into(), CONFIG_MAGIC.into()),
            ("config.version / 100 * 100".into(), CONFIG_VERSION.into()),
            ("config.blocking".into(), UNDEFINED.into()),
            ("NCCL_SPLIT_NOCOLOR".into(), SPLIT_NOCOLOR.into()),
            ("sizeof(ncclDataType_t)".into(), size_of::<c_int>() as i64),
            ("sizeof(ncclRedOp_t)".into(), size_of::<c_int>() as i64),
            ("sizeof(ncclResult_t)".into(), size_of::<c_int>() as i64),
            ("sizeof(CUdeviceptr)".into(), size_of::<CuDevicePointer>() as i64),
            ("sizeof(CUdevice)".into(), size_of::<CuDevice>() as i64),
            ("sizeof(CUuuid)".into(), 16),
            ("CUDA_SUCCESS".into(), SUCCESS.into()),
            ("CUDA_ERROR_NOT_READY".into(), CUDA_NOT_READY.into()),
            ("CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT".into(), ATTRIBUTE_MULTIPROCESSORS.into()),
            ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR".into(), ATTRIBUTE_CAPABILITY_MAJOR.into()),
            ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR".into(), ATTRIBUTE_CAPABILITY_MINOR.into()),
            ("CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK".into(), P2P_PERFORMANCE_RANK.into()),
            ("CU_STREAM_NON_BLOCKING".into(), STREAM_NON_BLOCKING.into()),
        ];
        expected.extend(types.map(|(dtype, name)| (name.to_owned(), data_type(dtype).unwrap().into())));
        expected.extend(operations.map(|(op, name)| (name.to_owned(), reduction(op).into())));
        expected.extend((0..8).map(|code| (result_name(code).to_owned(), code.into())));
        let expressions: Vec<String> = expected.iter().map(|(expression, _)| expression.clone()).collect();
        let values: Vec<(String, i64)> = expressions.iter().cloned().zip(c_values(&expressions)).collect();
        assert_eq!(values, expected);
    }

    /// What `cuda.h` names without a version is, in places, another function than the symbol of that name.
    #[test]
    fn the_functions_are_the_ones_that_the_headers_mean() {
        let (nccl, cuda) = wheel();
        let declared = |header: &Path| std::fs::read_to_string(header).unwrap();
        let (nccl, cuda) = (declared(&nccl.join("include/nccl.h")), declared(&cuda.join("include/cuda.h")));
        for symbol in NcclFunctions::REQUIRED {
            assert!(nccl.contains(&format!(" {symbol}(")), "{symbol}");
        }
        for symbol in CudaFunctions::REQUIRED {
            let plain = symbol.trim_end_matches("_v2");
            assert!(cuda.contains(&format!(" {plain}(")), "{symbol}");
            let renamed = cuda.lines().filter(|line| line.starts_with("#define")).any(|line| {
                let mut words = line.split_whitespace().skip(1);
                words.next() == Some(plain) && words.next().is_some_and(|name| name.contains(&format!("{plain}_v2")))
            });
            // The header means newer forms of these two; the old ones are in all drivers, and here just as good.
            let old = ["cuDeviceGetUuid", "cuEventElapsedTime"].contains(symbol);
            assert_eq!(renamed, old || *symbol != plain, "{symbol}");
        }
    }
}
