// Goal: a view names exactly the elements it says, shares the data, and impossible ones are
// refused. Method: a small matrix whose elements are their own positions.

#include "braid/core/tensor.h"

#include <gtest/gtest.h>

#include <numeric>

#include "braid/core/context.h"
#include "tests/support/files.h"

namespace braid {
namespace {

using test::expect_refused;

Tensor numbered(Shape shape) {
  std::vector<float> x(static_cast<size_t>(shape.count()));
  std::iota(x.begin(), x.end(), 0.0f);
  return host_tensor(std::move(x), shape);
}

std::vector<float> elements(const Tensor& x) {
  std::vector<float> out;
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.row_count(); ++j) out.push_back(x.f32()[i * x.row_stride() + j]);
  }
  return out;
}

TEST(Tensors, AnEmptyOneStandsForAbsent) {
  const Tensor none;
  EXPECT_FALSE(none.defined());
  EXPECT_EQ(none.raw(), nullptr);
  EXPECT_TRUE(numbered({2}).defined());
}

TEST(Tensors, ShapesAndExtents) {
  const Tensor x = numbered({2, 3, 4});
  EXPECT_EQ(x.rank(), 3);
  EXPECT_EQ(x.rows(), 2);
  EXPECT_EQ(x.row_count(), 12);
  EXPECT_EQ(x.dim(-1), 4);
  EXPECT_EQ(x.bytes(), 96u);
  const Tensor scalar = host_tensor(std::vector<float>{5}, Shape{});
  EXPECT_EQ(scalar.rows(), 1);
  EXPECT_EQ(scalar.count(), 1);
  EXPECT_EQ(to_string(x.shape()), "(2, 3, 4)");
  EXPECT_EQ(to_string(Shape{}), "()");
  EXPECT_EQ(numbered({0, 5}).count(), 0);
}

TEST(Tensors, SlicesOfRowsAndColumns) {
  const Tensor x = numbered({4, 5});
  EXPECT_EQ(elements(x.slice_rows(1, 3)), (std::vector<float>{5, 6, 7, 8, 9, 10, 11, 12, 13, 14}));
  const Tensor columns = x.slice_columns(1, 3);
  EXPECT_EQ(columns.shape(), (Shape{4, 2}));
  EXPECT_EQ(columns.row_stride(), 5);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_EQ(elements(columns), (std::vector<float>{1, 2, 6, 7, 11, 12, 16, 17}));
  EXPECT_EQ(elements(columns.slice_rows(2, 4)), (std::vector<float>{11, 12, 16, 17}));
  EXPECT_EQ(elements(columns.slice_columns(1, 2)), (std::vector<float>{2, 7, 12, 17}));
  EXPECT_TRUE(columns.slice_rows(0, 1).contiguous());
  EXPECT_EQ(x.slice_rows(2, 2).count(), 0);
  x.slice_rows(3, 4).f32()[0] = -1;
  EXPECT_EQ(x.f32()[15], -1);
}

TEST(Tensors, AViewOfATrackedTensorIsAnotherVariable) {
  Tensor x = numbered({4, 5});
  x.set_grad_id(9);
  EXPECT_EQ(x.slice_rows(0, 2).grad_id(), 0u);
  EXPECT_EQ(x.slice_columns(0, 2).grad_id(), 0u);
}

TEST(Tensors, ReshapesThatKeepTheElements) {
  const Tensor x = numbered({4, 6});
  EXPECT_EQ(elements(x.reshape({2, 12})), elements(x));
  const Tensor heads = x.slice_columns(0, 4).reshape({4, 2, 2});
  EXPECT_EQ(heads.row_stride(), 6);
  EXPECT_EQ(elements(heads), elements(x.slice_columns(0, 4)));
  expect_refused([&] { x.reshape({5, 5}); }, "(4, 6) to (5, 5)");
  expect_refused([&] { x.slice_columns(0, 4).reshape({16}); }, "strided rows");
}

TEST(Tensors, RefusesWhatIsNotThere) {
  const Tensor x = numbered({4, 5});
  expect_refused([&] { x.slice_rows(2, 5); }, "slice_rows: [2, 5) of shape (4, 5)");
  expect_refused([&] { x.slice_rows(-1, 2); }, "slice_rows");
  expect_refused([&] { x.slice_rows(3, 2); }, "slice_rows");
  expect_refused([&] { x.slice_columns(0, 6); }, "slice_columns: [0, 6)");
  expect_refused([&] { numbered({4}).slice_columns(0, 1); }, "slice_columns");
  expect_refused([&] { x.data<int32_t>(); }, "holds f32, read as i32");
  expect_refused([] { host_tensor(std::vector<float>(5), {2, 3}); }, "5 values, shape (2, 3)");
  expect_refused([] { Shape({1, 1, 1, 1, 1, 1, 1}); }, "rank 7, want at most 6");
  expect_refused([] { Shape({2, -1}); }, "extent -1");
  expect_refused([] { Shape({int64_t{1} << 40, int64_t{1} << 40}).checked_count(); }, "addressed");
  EXPECT_EQ((Shape{0, int64_t{1} << 62, 8}).checked_count(), 0);
}

TEST(Tensors, CopiesAreContiguous) {
  Context ctx({.threads = 1});
  const Tensor x = numbered({4, 5}).slice_columns(1, 4);
  for (const Tensor& copy : {ctx.to_host(x), ctx.to_device(x)}) {
    EXPECT_TRUE(copy.contiguous());
    EXPECT_EQ(elements(copy), elements(x));
    EXPECT_NE(copy.raw(), x.raw());
  }
}

}  // namespace
}  // namespace braid
