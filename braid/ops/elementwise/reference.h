#pragma once

#include <cstddef>
#include <vector>

namespace braid::reference {

template <class T>
std::vector<T> add(const std::vector<T>& a, const std::vector<T>& b) {
  std::vector<T> y(a.size());
  for (size_t i = 0; i < a.size(); ++i) y[i] = a[i] + b[i];
  return y;
}

template <class T>
std::vector<T> scale(const std::vector<T>& x, double s) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * s;
  return y;
}

template <class T>
std::vector<T> multiply(const std::vector<T>& a, const std::vector<T>& b) {
  std::vector<T> y(a.size());
  for (size_t i = 0; i < a.size(); ++i) y[i] = a[i] * b[i];
  return y;
}

template <class T>
std::vector<T> scale_rows(const std::vector<T>& x, const std::vector<T>& s) {
  const size_t width = x.size() / s.size();
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * s[i / width];
  return y;
}

}  // namespace braid::reference
