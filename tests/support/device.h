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

namespace braid::test {

class DeviceTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    try {
      ctx_.emplace(ContextOptions{.device = {.kind = GetParam()}, .threads = 2, .poison = true});
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kUnsupported) throw;
      GTEST_SKIP() << error.what();
    }
  }

  Context& ctx() { return *ctx_; }
  Tensor to_device(const Tensor& x) { return ctx().to_device(x); }
  /// The elements on the host, whatever device they lie on.
  std::vector<double> read(const Tensor& x) { return values(ctx().to_host(x)); }

  void expect_near(const Tensor& got, const std::vector<double>& want, double tol,
                   const char* what) {
    ASSERT_TRUE(got.defined()) << what;
    expect_close(read(got), want, tol, what);
  }

 private:
  std::optional<Context> ctx_;
};

inline const auto kDevices = ::testing::Values(DeviceKind::kCpu, DeviceKind::kCuda);
inline std::string device_name(const ::testing::TestParamInfo<DeviceKind>& info) {
  return to_string(Device{.kind = info.param});
}

}  // namespace braid::test
