#pragma once

// One test body for every device. A suite derives from DeviceTest and is instantiated by
//   INSTANTIATE_TEST_SUITE_P(Devices, RmsNorm, test::kDevices, test::device_name);
// Where the build or the machine lacks the device, its instances are reported as skipped.

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "braid/core/context.h"
#include "braid/core/error.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid::test {

/// A Context on one device and the way there and back; for suites with parameters of their own.
class OnDevice {
 protected:
  /// To be called by SetUp.
  void open(DeviceKind kind) {
    try {
      ctx_.emplace(ContextOptions{.device = {.kind = kind}, .threads = 2, .poison = true});
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kUnsupported) throw;
      GTEST_SKIP() << error.what();
    }
  }

  Context& ctx() { return *ctx_; }
  bool on_cpu() { return ctx().device().kind == DeviceKind::kCpu; }
  /// Runs the body once; on the CPU as often as `on_every_target`.
  template <class Body>
  void everywhere(Body&& body) {
    if (on_cpu()) {
      on_every_target(body);
    } else {
      body();
    }
  }
  /// On the device, as rows that lie `pad` elements apart.
  Tensor to_device(const Tensor& x, int64_t pad = 0) {
    if (!x.defined() || pad == 0) return x.defined() ? ctx().to_device(x) : x;
    const Tensor wide = randn({x.rows(), x.dim(1) + pad}, 99);
    for (int64_t i = 0; i < x.rows(); ++i) {
      std::copy_n(x.f32() + i * x.row_stride(), x.dim(1), wide.f32() + i * wide.dim(1));
    }
    return ctx().to_device(wide).slice_columns(0, x.dim(1));
  }
  Tensor to_host(const Tensor& x) { return ctx().to_host(x); }
  /// The elements on the host, whatever device they lie on.
  std::vector<double> read(const Tensor& x) { return values(to_host(x)); }
  bool same(const Tensor& a, const Tensor& b) { return same_bits(to_host(a), to_host(b)); }

  void expect_near(const Tensor& got, const std::vector<double>& want, double tol,
                   const char* what) {
    ASSERT_TRUE(got.defined()) << what;
    expect_close(read(got), want, tol, what);
  }

 private:
  std::optional<Context> ctx_;
};

class DeviceTest : public ::testing::TestWithParam<DeviceKind>, protected OnDevice {
 protected:
  void SetUp() override { open(GetParam()); }
};

inline const auto kDevices = ::testing::Values(DeviceKind::kCpu, DeviceKind::kCuda);
inline std::string device_name(const ::testing::TestParamInfo<DeviceKind>& info) {
  return to_string(Device{.kind = info.param});
}

/// For suites over devices and dtypes: "cuda_bf16".
using DeviceAndDType = std::tuple<DeviceKind, DType>;
inline const auto kDevicesAndDTypes =
    ::testing::Combine(kDevices, ::testing::Values(DType::kF32, DType::kBF16));
inline std::string device_and_dtype_name(const ::testing::TestParamInfo<DeviceAndDType>& info) {
  return to_string(Device{.kind = std::get<0>(info.param)}) + "_" +
         std::string(to_string(std::get<1>(info.param)));
}
class DeviceAndDTypeTest : public ::testing::TestWithParam<DeviceAndDType>, protected OnDevice {
 protected:
  void SetUp() override { open(std::get<0>(GetParam())); }
  DType dtype() const { return std::get<1>(GetParam()); }
};

}  // namespace braid::test
