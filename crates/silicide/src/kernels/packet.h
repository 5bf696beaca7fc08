// Elements that lie side by side and are moved together, by accesses of up to 16 bytes. A lane that loads all its packets
// before it uses the first has much on its way at once, which is what the speed of memory asks for.

// How many elements of a type are 16 bytes.
template <typename T>
struct Wide {
  static constant constexpr uint COUNT = 16 / sizeof(T);
};

// Words at a multiple of their size, or of 16 bytes.
template <uint WORDS>
inline void load_words(device const void* at, thread uint (&words)[WORDS]) {
  device const uint* from = (device const uint*)at;
  if (WORDS % 4 == 0) {
    for (uint i = 0; i + 4 <= WORDS; i += 4) {
      uint4 four = *(device const uint4*)(from + i);
      for (uint j = 0; j < 4; ++j) {
        words[i + j] = four[j];
      }
    }
  } else if (WORDS % 2 == 0) {
    for (uint i = 0; i + 2 <= WORDS; i += 2) {
      uint2 two = *(device const uint2*)(from + i);
      words[i] = two[0];
      words[i + 1] = two[1];
    }
  } else {
    for (uint i = 0; i < WORDS; ++i) {
      words[i] = from[i];
    }
  }
}

template <uint WORDS>
inline void store_words(device void* at, thread const uint (&words)[WORDS]) {
  device uint* to = (device uint*)at;
  if (WORDS % 4 == 0) {
    for (uint i = 0; i + 4 <= WORDS; i += 4) {
      *(device uint4*)(to + i) = uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
  } else if (WORDS % 2 == 0) {
    for (uint i = 0; i + 2 <= WORDS; i += 2) {
      *(device uint2*)(to + i) = uint2(words[i], words[i + 1]);
    }
  } else {
    for (uint i = 0; i < WORDS; ++i) {
      to[i] = words[i];
    }
  }
}

// An element among words, by its size; what is put where is zero.
template <typename T, uint SIZE>
struct Place {
  static T get(thread const uint* words, uint i) { return as_type<T>(words[i]); }
  static void put(thread uint* words, uint i, T x) { words[i] = as_type<uint>(x); }
};
template <typename T>
struct Place<T, 1> {
  static T get(thread const uint* words, uint i) { return as_type<T>(uchar(words[i / 4] >> 8 * (i % 4))); }
  static void put(thread uint* words, uint i, T x) { words[i / 4] |= uint(as_type<uchar>(x)) << 8 * (i % 4); }
};
template <typename T>
struct Place<T, 2> {
  static T get(thread const uint* words, uint i) { return as_type<T>(ushort(words[i / 2] >> 16 * (i % 2))); }
  static void put(thread uint* words, uint i, T x) { words[i / 2] |= uint(as_type<ushort>(x)) << 16 * (i % 2); }
};
template <typename T>
struct Place<T, 8> {
  static T get(thread const uint* words, uint i) { return as_type<T>(uint2(words[2 * i], words[2 * i + 1])); }
  static void put(thread uint* words, uint i, T x) {
    uint2 two = as_type<uint2>(x);
    words[2 * i] = two[0];
    words[2 * i + 1] = two[1];
  }
};

// N elements, whole words of them, or one.
template <typename T, uint N>
struct Packet {
  uint words[N * sizeof(T) / 4];

  static Packet zeros() {
    Packet p;
    for (uint i = 0; i < N * sizeof(T) / 4; ++i) {
      p.words[i] = 0;
    }
    return p;
  }
  static Packet load(device const T* at) {
    Packet p;
    load_words(at, p.words);
    return p;
  }
  // The first `count` of them, `stride` apart, and zeros.
  static Packet gather(device const T* at, ulong stride, uint count) {
    Packet p = zeros();
    for (uint i = 0; i < N; ++i) {
      if (i < count) {
        p.put(i, at[i * stride]);
      }
    }
    return p;
  }
  void store(device T* at) const { store_words(at, words); }
  void scatter(device T* at, ulong stride, uint count) const {
    for (uint i = 0; i < N; ++i) {
      if (i < count) {
        at[i * stride] = get(i);
      }
    }
  }
  T get(uint i) const { return Place<T, sizeof(T)>::get(words, i); }
  // Once for each element of a packet that began as zeros.
  void put(uint i, T x) { Place<T, sizeof(T)>::put(words, i, x); }
};

template <typename T>
struct Packet<T, 1> {
  T element;

  static Packet zeros() { return {T(0)}; }
  static Packet load(device const T* at) { return {*at}; }
  void store(device T* at) const { *at = element; }
  T get(uint) const { return element; }
  void put(uint, T x) { element = x; }
};

template <typename C, typename T>
struct Conversion {
  template <uint N>
  static Packet<C, N> of(Packet<T, N> from) {
    Packet<C, N> to = Packet<C, N>::zeros();
    for (uint i = 0; i < N; ++i) {
      to.put(i, C(float(from.get(i))));
    }
    return to;
  }
};
template <typename T>
struct Conversion<T, T> {
  template <uint N>
  static Packet<T, N> of(Packet<T, N> from) {
    return from;
  }
};

// The same elements in another type of float.
template <typename C, uint N, typename T>
inline Packet<C, N> converted(Packet<T, N> from) {
  return Conversion<C, T>::of(from);
}
