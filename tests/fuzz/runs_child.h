// One case in a process of its own, so that what hangs or crashes is named; and failing cases made smaller.
#pragma once

#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include <csignal>

#include "runs_check.h"

namespace fuzz {

template <class T>
T* shared_memory(size_t count) {
  void* map = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) {
    std::perror("mmap");
    std::exit(3);
  }
  return static_cast<T*>(map);
}

inline double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Ends this process when it has computed for so long; what waits for ever is ended by its parent.
inline void limit_cpu_time(double seconds) {
  const itimerval limit{{0, 0}, {time_t(seconds), suseconds_t((seconds - double(time_t(seconds))) * 1e6)}};
  setitimer(ITIMER_PROF, &limit, nullptr);
}

struct Limits {
  double cpu_seconds = 5;    // of one case
  double wall_seconds = 60;  // in which a worker must come to its next step
};

// What a process that ended, other than by itself at its end, says of the case that it was at.
inline Failure failure_of(int status, const Stage& stage, const std::vector<Library>& libraries) {
  Failure failure;
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    failure.kind = signal == SIGPROF || signal == SIGKILL ? "hang" : "crash";
    failure.message = signal == SIGPROF || signal == SIGKILL ? "it does not come back" : strsignal(signal);
  } else {
    failure.kind = "sanitizer";
    failure.message = "see the report; exit status " + std::to_string(WEXITSTATUS(status));
  }
  const int algorithm = stage.algorithm, isa = stage.isa, pass = stage.pass;
  if (algorithm == kPreparing) {
    failure.algorithm = "preparing";
  } else {
    failure.isa = libraries[size_t(isa)].name;
    failure.pass = kPassNames[pass];
    failure.algorithm = algorithm == kChoosing ? "auto" : conv_ext::kCandidates[algorithm].name;
  }
  return failure;
}

class Children {
 public:
  Children(const std::vector<Library>& libraries, Limits limits)
      : libraries_(libraries), limits_(limits), stage_(shared_memory<Stage>(1)) {}

  // The failures of a case that is run in a child.
  std::vector<Failure> run(const Case& c, bool quiet) {
    int ends[2];
    if (pipe(ends) != 0) std::exit(3);
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      close(ends[0]);
      if (quiet && freopen("/dev/null", "w", stderr) == nullptr) _exit(3);
      limit_cpu_time(limits_.cpu_seconds);
      std::vector<Failure> failures;
      check_case(c, libraries_, stage_, [](const Case&, int, Pass, int, bool) {}, &failures);
      for (const Failure& f : failures) {
        const std::string line = f.kind + "|" + f.isa + "|" + f.pass + "|" + f.algorithm + "|" + f.message + "\n";
        if (write(ends[1], line.data(), line.size()) < 0) _exit(3);
      }
      _exit(0);
    }
    close(ends[1]);
    std::string text;
    const double begin = now();
    int status = 0;
    for (;;) {
      // Reads to the end; a child that waits for ever is ended.
      fd_set set;
      FD_ZERO(&set);
      FD_SET(ends[0], &set);
      timeval wait{0, 200000};
      if (select(ends[0] + 1, &set, nullptr, nullptr, &wait) > 0) {
        char buffer[4096];
        const ssize_t count = read(ends[0], buffer, sizeof(buffer));
        if (count <= 0) break;
        text.append(buffer, size_t(count));
      }
      if (now() - begin > limits_.wall_seconds) kill(child, SIGKILL);
    }
    close(ends[0]);
    waitpid(child, &status, 0);
    std::vector<Failure> failures;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      Failure f;
      for (std::string* word : {&f.kind, &f.isa, &f.pass, &f.algorithm}) std::getline(words, *word, '|');
      std::getline(words, f.message);
      failures.push_back(f);
    }
    if (status != 0) failures.push_back(failure_of(status, *stage_, libraries_));
    return failures;
  }

  // Makes a failing case smaller for as long as it fails in the same way.
  Case shrink(Case c, Failure* failure) {
    for (const auto& library : libraries_)
      if (library.name == failure->isa) c.isa = failure->isa;
    for (const char* name : kPassNames)
      if (failure->pass == name) c.pass = name;
    for (const Candidate& candidate : conv_ext::kCandidates)
      if (failure->algorithm == candidate.name) c.algorithm = candidate.name;
    const double begin = now();
    int tries = 0;
    const auto still = [&](const Case& smaller) {
      ConvProblem z = smaller.z;
      if (!complete(&z) || text_of(z) != text_of(smaller.z) || now() - begin > 40 || ++tries > 400) return false;
      for (const Failure& f : run(smaller, true))
        if (f.kind == failure->kind && f.pass == failure->pass && f.algorithm == failure->algorithm) {
          failure->message = f.message;
          return true;
        }
      return false;
    };
    if (!still(c)) return c;  // not by itself: reported as it was found
    for (bool smaller = true; smaller;) {
      smaller = false;
      for (size_t i = 0; i < simpler(c).size(); ++i) {  // each of what the last one left
        const Case next = simpler(c)[i];
        if (text_of(next) == text_of(c) || !still(next)) continue;
        c = next;
        smaller = true;
      }
    }
    return c;
  }

 private:
  // Each with one thing less.
  static std::vector<Case> simpler(const Case& c) {
    std::vector<Case> all;
    const auto with = [&](auto change) {
      Case next = c;
      change(next);
      if (complete(&next.z)) all.push_back(next);
    };
    with([](Case& n) {
      n.bias_stride = -1;
      n.relu = false;
    });
    with([](Case& n) { n.adds = false; });
    with([](Case& n) { n.activation = Behind::None; });
    with([](Case& n) { n.residual = Layout(); });
    with([](Case& n) {
      n.shuffled = n.threads = 0;
      n.cut_begin = n.cut_end = 0;
    });
    with([](Case& n) { n.l1 = n.l2 = n.last = 0; });
    with([](Case& n) {
      for (Layout& layout : n.layout) layout = Layout();
      n.z.channels_last = false;
    });
    for (int t = 0; t < 3; ++t) {
      with([&](Case& n) { n.layout[t] = Layout(); });
      with([&](Case& n) { n.layout[t].expand = n.layout[t].overlap = n.layout[t].odd = 0; });
      with([&](Case& n) {
        n.layout[t].step = 1;
        for (int64_t& gap : n.layout[t].gap) gap = 0;
      });
      with([&](Case& n) {
        n.layout[t].shift = 0;
        n.layout[t].at_begin = false;
      });
    }
    with([](Case& n) { n.data = Data::Integers; });
    with([](Case& n) {
      n.z.c /= n.z.groups;
      n.z.k /= n.z.groups;
      n.z.groups = 1;
    });
    const auto groups_to = [&](int64_t groups) {
      with([&](Case& n) {
        n.z.c = n.z.group_c() * groups;
        n.z.k = n.z.k / n.z.groups * groups;
        n.z.groups = groups;
      });
    };
    if (c.z.groups > 1) {
      groups_to(c.z.groups / 2);
      groups_to(c.z.groups - 1);
    }
    const auto number = [&](auto member, int64_t least, int64_t unit) {
      const int64_t value = c.z.*member;
      for (const int64_t less : {least * unit, value / unit / 2 * unit, value - unit})
        if (less >= least * unit && less < value) with([&](Case& n) { n.z.*member = less; });
    };
    number(&ConvProblem::n, 1, 1);
    number(&ConvProblem::c, 1, c.z.groups);
    number(&ConvProblem::k, 1, c.z.groups);
    for (auto member :
         {&ConvProblem::pad_top, &ConvProblem::pad_bottom, &ConvProblem::pad_left, &ConvProblem::pad_right})
      number(member, 0, 1);
    for (auto member : {&ConvProblem::h, &ConvProblem::w, &ConvProblem::r, &ConvProblem::s, &ConvProblem::stride_h,
                        &ConvProblem::stride_w, &ConvProblem::dilation_h, &ConvProblem::dilation_w})
      number(member, 1, 1);
    with([](Case& n) {
      n.z.h -= 1;
      n.z.r -= 1;
    });
    with([](Case& n) {
      n.z.w -= 1;
      n.z.s -= 1;
    });
    with([](Case& n) { n.z.precision = Precision::Ieee; });
    with([](Case& n) { n.z.dtype = DType::Float32; });
    return all;
  }

  const std::vector<Library>& libraries_;
  const Limits limits_;
  Stage* const stage_;
};

}  // namespace fuzz
